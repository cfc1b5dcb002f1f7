"""The bits of a chat set, against the plain array."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nld_train.data.answer_bits import AnswerBits, check_answer_bits, write_answer_bits
from nld_train.data.manifest import ChatManifest, Manifest, full_fingerprint, is_chat_set, read_manifest
from nld_train.data.packed import quick_fingerprint
from nld_train.errors import UserError

WriteSet = Callable[..., str]


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 1000])
def test_bits_are_those_of_the_array(tmp_path: Path, tokens: int) -> None:
    draw = np.random.default_rng(tokens)
    answers = draw.random(tokens) < 0.5
    prefix = str(tmp_path / "set")
    write_answer_bits(prefix, np.array_split(answers, 6))  # some are empty, few end at a byte
    assert (tmp_path / "set.answers.bin").read_bytes() == np.packbits(answers, bitorder="little").tobytes()
    bits = AnswerBits(prefix, tokens)
    for begin, end in np.sort(draw.integers(0, tokens + 1, (40, 2))).tolist():
        np.testing.assert_array_equal(bits.read(begin, end - begin), answers[begin:end])


def test_a_file_of_another_set_is_refused(tmp_path: Path) -> None:
    prefix = str(tmp_path / "set")
    with pytest.raises(UserError, match=r"set\.answers\.bin cannot be read \(No such file or directory\): prepare"):
        check_answer_bits(prefix, 8)
    write_answer_bits(prefix, [np.ones(9, dtype=bool)])
    with pytest.raises(UserError, match=r"it has 2 bytes, and .*set\.bin with 8 tokens requires 1; prepare"):
        check_answer_bits(prefix, 8)


def test_a_manifest_says_whether_a_set_is_of_conversations(tmp_path: Path, write_set: WriteSet) -> None:
    prefix = write_set(tmp_path / "set", [[1, 2, 3], [4, 5]])
    assert not is_chat_set(prefix)
    chat = ChatManifest("0" * 64, "all", 2, 3, 3, 2, 5)
    manifest = Manifest(1, [], {}, "", "", "", 6, None, 2, 5, 5, "uint16", "", "", {}, chat=chat)
    manifest.write(f"{prefix}.manifest.json")
    assert read_manifest(prefix) == manifest
    assert is_chat_set(prefix)
    content = json.loads(Path(f"{prefix}.manifest.json").read_text())
    content["chat"]["conversations"] = "two"
    Path(f"{prefix}.manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is damaged \(chat: conversations must not be \"two\"\)"):
        read_manifest(prefix)
    del content["chat"]  # as earlier versions wrote it
    Path(f"{prefix}.manifest.json").write_text(json.dumps(content))
    assert not is_chat_set(prefix)


def test_the_bits_are_part_of_the_identity_of_a_set(tmp_path: Path, write_set: WriteSet) -> None:
    prefix = write_set(tmp_path / "set", [[1, 2, 3], [4, 5]])
    identities = [(quick_fingerprint(prefix), full_fingerprint(prefix))]
    for bits in ([0, 0, 1, 0, 1], [0, 1, 1, 0, 1]):
        write_answer_bits(prefix, [np.array(bits, dtype=bool)])
        identities.append((quick_fingerprint(prefix), full_fingerprint(prefix)))
    assert len({quick for quick, _ in identities}) == len({full for _, full in identities}) == 3
