"""Files of prompts are read like files of documents, and refused in one line with file and line."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from nld_train.commands import curve, decode
from nld_train.decoding.command_line.prompts import read_prompts
from nld_train.errors import UserError
from nld_train.evaluation.categories import read_questions

MARK = b"\xef\xbb\xbf"


def json_lines(*prompts: str) -> bytes:
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", MARK + b"one\ntwo\n"),
        ("a.txt", b"one\r\ntwo"),
        ("a.jsonl", MARK + json_lines("one", "two")),
        ("a.JSONL", json_lines("one", "two")),
        ("a.ndjson", json_lines("one", "two")),
        ("a.json", json_lines("one") + b"\n  \n" + json_lines("two")),
        ("a.jsonl.gz", gzip.compress(MARK + json_lines("one", "two"), mtime=0)),
        ("a.jsonl.xz", lzma.compress(json_lines("one", "two"))),
        ("a.txt.xz", lzma.compress(b"one\ntwo\n")),
    ],
)
def test_prompts_are_read_as_documents_are(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [prompt.text for prompt in read_prompts(tmp_path / name)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", b"x", ".zip files are not read: unpack it"),
        ("a.parquet", b"x", "write the prompts as JSONL or text"),
        ("a.txt", gzip.compress(b"one", mtime=0), "its name must end with .gz"),
        ("a.txt", "one".encode("utf-16"), "convert it to UTF-8"),
        ("a.txt", b"one\ncaf\xe9\n", "a.txt:2: is not UTF-8 at byte 3 of the line"),
        ("a.jsonl", b'{"prompt": "x \\ud83d y"}\n', "a.jsonl:1: holds \\ud83d, half of a surrogate pair"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": ' + b"9" * 5000 + b"}\n", "a.jsonl:2: has an integer of more than"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: is nested too deeply"),
        ("a.jsonl", b"one\n", "a.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": "one"}\n', "a.jsonl:1: no key 'prompt' (text)"),
        ("a.jsonl", b'{"conversations": [{"from": "human", "value": "hi"}]}\n', "a.jsonl:1: is a conversation"),
        ("a.jsonl", b'{"prompt": 3}\n', "a.jsonl:1: 'prompt' is a number, not text"),
        ("a.jsonl", b'{"prompt": null}\n', "a.jsonl:1: the prompt is empty"),
        ("a.jsonl", b"\n", "holds no prompt"),
        ("a.jsonl.xz", lzma.compress(json_lines("one"))[:-20], "cannot be read"),
    ],
)
def test_what_holds_no_prompts_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value).startswith(f"--prompts {tmp_path}")
    assert message in str(caught.value)


def test_questions_are_read_through_the_same_files(tmp_path: Path) -> None:
    line = json.dumps({"category": "a", "prompt": "seven"}).encode() + b"\n"
    (tmp_path / "q.ndjson.gz").write_bytes(gzip.compress(MARK + line, mtime=0))
    assert read_questions(tmp_path / "q.ndjson.gz")[0].turns == ("seven",)
    (tmp_path / "q.jsonl").write_bytes(line + b'{"category": "a", "turns": ["\\ud83d"]}\n')
    with pytest.raises(UserError, match=r"q\.jsonl:2: holds \\ud83d"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b"9" * 5000 + b"\n")
    with pytest.raises(UserError, match=r"q\.jsonl:1: has an integer"):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (decode.main, ["--mode", "ar", "--prompt", "caf\udce9"]),
        (decode.main, ["--mode", "ar", "--prompt", "x", "--stop", "\udcff"]),
        (curve.main, ["--prompt", "caf\udce9"]),
    ],
)
def test_arguments_that_are_not_utf8_are_one_line(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], words: list[str]
) -> None:
    """Python passes a byte that is not UTF-8 as half of a surrogate pair."""
    assert main(["nowhere", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"argument {words[-2]}: is not UTF-8: byte 0x" in error
