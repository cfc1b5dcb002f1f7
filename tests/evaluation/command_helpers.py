"""Helpers of the tests of decoding commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PROMPTS = ("seven times", "r\u00e9sum\u00e9 is", "and that ends here", "eight is", "here seven", "is and that")
# Arguments of commands that decode.
FEW = ("--max-new-tokens", "16", "--batch-size", "4")
Main = Callable[[list[str]], int]
Report = Callable[..., dict[str, Any]]
Decoded = Callable[..., list[dict[str, Any]]]


def per_forward(records: list[dict[str, Any]], mode: str) -> float:
    """Tokens per forward over all prompts."""
    chosen = [record for record in records if record["mode"] == mode]
    return sum(record["new_tokens"] for record in chosen) / sum(record["forwards"] for record in chosen)


def refusal(capsys: pytest.CaptureFixture[str], main: Main, *words: object) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err
