"""Helpers of the tests of decoding commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PROMPTS = ("seven times", "r\u00e9sum\u00e9 is", "and that ends here", "eight is", "here seven", "is and that")
THREE = PROMPTS[:3]
MODES = ("ar", "diffusion", "linear", "quadratic")
# Arguments of commands that decode.
SHORT = ("--max-new-tokens", "20")
FEW = ("--max-new-tokens", "16", "--batch-size", "4")
# A short block and a low threshold, and the modes that read them.
_SETTINGS = {"--block-length": ("4", ("diffusion", "linear", "quadratic")), "--threshold": ("0.3", ("diffusion",))}
Main = Callable[[list[str]], int]
Report = Callable[..., dict[str, Any]]
Decoded = Callable[..., list[dict[str, Any]]]


def short(*words: object) -> list[str]:
    """A command line with the settings above, as far as its mode and policy read them; a comparison reads all."""
    given = list(map(str, words))
    mode = given[given.index("--mode") + 1] if "--mode" in given else None
    for option, (value, modes) in _SETTINGS.items():
        if option not in given and mode in (None, *modes) and (modes != ("diffusion",) or "--policy" not in given):
            given += [option, value]
    return given


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
