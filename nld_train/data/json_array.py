"""The elements of a JSON list in a file of any size, one at a time."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from nld_train.data.text_files import TextFile, open_text
from nld_train.errors import UserError

_CHUNK = 1 << 20
_LARGEST_ELEMENT = 256 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


def array_elements(path: str) -> Iterator[tuple[Any, int]]:
    """Reads a list; memory holds a chunk of the file and one element.

    Args:
        path: of the file, which may be compressed.

    Yields:
        Each element, and the bytes of the file that have been read with it.

    Raises:
        UserError: the file cannot be read, or is no list; names the number of the element.
    """
    with open_text(path) as file:
        text = _Text(file, path)
        text.expect("[", "the beginning")
        number = 1
        while not text.follows("]"):
            if number > 1:
                text.expect(",", f"row {number}")
            yield text.value(number), file.position
            number += 1


class _Text:
    """The text of a file from a position on, read as it is needed."""

    def __init__(self, file: TextFile, path: str) -> None:
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._ended = "", 0, False

    def follows(self, character: str) -> bool:
        """Whether this is the next character after white space."""
        self._skip_space()
        return self._text.startswith(character, self._at)

    def expect(self, character: str, where: str) -> None:
        """Skips a character.

        Raises:
            UserError: it does not follow.
        """
        if not self.follows(character):
            raise UserError(f"{self._path}, {where}: not JSON ({character!r} of a list is missing)")
        self._at += 1

    def value(self, number: int) -> Any:
        """The next value, element `number` of the list."""
        self._skip_space()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # A number at the end of what has been read may go on.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except (json.JSONDecodeError, RecursionError) as error:
                if self._ended or isinstance(error, RecursionError) or len(self._text) > _LARGEST_ELEMENT:
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                    raise UserError(f"{self._path}, row {number}: not JSON ({reason})") from error
            self._read()

    def _skip_space(self) -> None:
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or self._ended:
                return
            self._read()

    def _read(self) -> None:
        """Reads as much again as has not been used, so that a long element is parsed a few times only."""
        self._text, self._at = self._text[self._at :], 0
        raw = self._file.read(max(_CHUNK, len(self._text)))
        self._ended = not raw
        try:
            self._text += self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path} is not UTF-8") from error


_DECODER = json.JSONDecoder()
