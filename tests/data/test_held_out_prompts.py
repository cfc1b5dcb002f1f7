"""`nld-data prompts`: pieces of the documents of a set, of one length, the same at every call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nld_train.commands.data import main

LENGTHS = (10, 100, 41, 40, 39, 400)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Documents of these lengths without their end token, each in letters of its own."""
    texts = ["".join(chr(97 + 4 * number + i % 4) for i in range(length)) for number, length in enumerate(LENGTHS)]
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    assert main(["prepare", str(tmp_path / "corpus.txt"), "--out", str(tmp_path), "--documents-per", "line"]) == 0
    return str(tmp_path / "corpus")


def prompts_of(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


def test_prompts_end_in_the_middle_of_documents_that_are_long_enough(prefix: str, tmp_path: Path) -> None:
    out = tmp_path / "prompts.jsonl"
    assert main(["prompts", prefix, "--out", str(out), "--count", "4", "--tokens", "20"]) == 0
    # 39 letters and the end token are 40 tokens, twice 20.
    expected = []
    for number in (1, 2, 3, 4, 5):
        middle = (LENGTHS[number] + 1) // 2
        expected.append("".join(chr(97 + 4 * number + i % 4) for i in range(middle - 20, middle)))
    found = prompts_of(out)
    assert len(found) == 4
    assert found == [expected[index * len(expected) // 4] for index in range(4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "6", "--tokens", "20"], "5 documents of 40 tokens or more, fewer than --count 6"),
        (["--count", "0"], "--count and --tokens must be at least 1"),
    ],
)
def test_what_cannot_be_taken_is_refused(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "prompts.jsonl"
    assert main(["prompts", prefix, "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
