"""A split without a document on one side is refused before anything is encoded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nld_train.commands.data import main
from nld_train.data.readers import Document
from nld_train.data.split import check_split
from nld_train.errors import UserError


def prepared(folder: Path, fraction: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of `nld-data prepare` with a fraction, empty where it succeeds."""
    words = ["prepare", str(folder / "in.jsonl"), "--out", str(folder / "out"), "--workers", "1"]
    status = main([*words, "--validation", fraction])
    error = capsys.readouterr().err
    assert (status, bool(error)) in ((0, False), (2, True))
    return error


@pytest.mark.parametrize("fraction", ["0.002", "0.998"])
def test_a_fraction_that_leaves_a_side_empty_fails_before_encoding_and_names_one_that_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fraction: str
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "text {number}"}}\n' for number in range(60)))
    error = prepared(tmp_path, fraction, capsys)
    assert "out of 60" in error
    assert not (tmp_path / "out").exists()
    found = re.search(r"the fraction must be at (?:least|most) ([0-9.]+)", error)
    assert found is not None
    assert prepared(tmp_path, found[1], capsys) == ""


def test_a_single_document_cannot_be_split() -> None:
    one, two = [Document("a", "a")], [Document("a", "a")] * 2
    with pytest.raises(UserError, match="hold one document: give more text, or --documents-per line"):
        check_split(one, 0.5)
    with pytest.raises(UserError, match="hold 2 equal documents"):
        check_split(two, 0.5)
    check_split(one, 0)


def test_sources_without_text_are_refused_before_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    assert "the sources hold no text" in prepared(tmp_path, "0", capsys)
    assert not (tmp_path / "out").exists()


def test_only_the_documents_that_decide_are_read() -> None:
    read = []

    def documents():
        for number in range(100_000):
            read.append(number)
            yield Document(str(number), str(number))

    check_split(documents(), 0.1)
    assert len(read) < 1000
