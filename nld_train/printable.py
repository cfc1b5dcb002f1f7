"""Text from files and models in a form that is safe to print, and JSON and Markdown made of it.

A terminal obeys escape sequences and C1 characters, and bidirectional controls show a name as another one. `printable`
writes them as escapes. Every line and table for the user passes through it: errors in `errors.report_error`, lines in
`say`, tables and live displays in `console.plain_console`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

# Control characters, invisible format characters (bidirectional controls among them), lone surrogates, and the line
# and paragraph separators of Unicode.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Line breaks and tabs, and the joiners of Persian and Indic words and of emoji.
_KEPT = "\n\t\u200c\u200d"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")


class _Escapes(dict[int, str]):
    """What `str.translate` writes for each character, computed when it first occurs."""

    def __init__(self, escape: Callable[[str], str]) -> None:
        super().__init__()
        self._escape = escape

    def __missing__(self, code: int) -> str:
        char = chr(code)
        safe = char in _KEPT or unicodedata.category(char) not in _UNPRINTABLE
        self[code] = char if safe else self._escape(char)
        return self[code]


_AS_TEXT = _Escapes(lambda char: ascii(char)[1:-1])
_AS_JSON = _Escapes(lambda char: json.dumps(char)[1:-1])


def printable(text: str) -> str:
    r"""The text with Python's escapes (`\x1b`, `\u202e`) for what could command a terminal or hide something.

    Line breaks and tabs stay.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_AS_TEXT)


def one_line(text: str) -> str:
    """`printable` text with its white space, line breaks among it, as single spaces."""
    return printable(" ".join(text.split()))


def say(line: str) -> None:
    """Prints a line on standard output."""
    print(printable(line))


def printable_json(value: Any, indent: int | None = None) -> str:
    """JSON in readable Unicode, with JSON's escapes for what `printable` escapes: parsed, it is the same value."""
    return json.dumps(value, ensure_ascii=False, indent=indent).translate(_AS_JSON)


def markdown(text: str) -> str:
    """Text on one line of Markdown, a cell of a table included, that is shown as it is."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def markdown_code(text: str) -> str:
    """Text as a code span of Markdown."""
    shown = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"
