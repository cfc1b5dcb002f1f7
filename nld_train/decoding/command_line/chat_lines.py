"""The user's lines of a chat, from a terminal or a pipe."""

from __future__ import annotations

import sys

from nld_train.decoding.command_line.prompts import checked_characters
from nld_train.errors import UserError

# Around a message of several lines, on a terminal.
_QUOTES = '"""'
_PROMPT, _MORE = ">>> ", "... "


class ChatLines:
    """Standard input, line by line.

    Args:
        quiet: whether standard output is for JSON alone: prompts are then written to standard error.

    Attributes:
        interactive: whether somebody types them.
    """

    def __init__(self, quiet: bool) -> None:
        self.interactive = sys.stdin.isatty()
        self._quiet = quiet
        self._number = 0
        if self.interactive:
            _edit_lines()

    def read(self) -> str | None:
        """The next line that is not blank; None at the end.

        Raises:
            UserError: it is not UTF-8.
        """
        while (line := self._typed() if self.interactive else self._piped()) is not None:
            if line.strip():
                return line
        return None

    def _piped(self) -> str | None:
        self._number += 1
        if not (raw := sys.stdin.buffer.readline()):
            return None
        try:
            return raw.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise UserError(f"standard input:{self._number}: is not UTF-8 at byte {error.start} of the line") from error

    def _typed(self) -> str | None:
        try:
            line = self._ask(_PROMPT)
            while line.startswith(_QUOTES) and not (line.endswith(_QUOTES) and len(line) >= 2 * len(_QUOTES)):
                line = f"{line}\n{self._ask(_MORE)}"
        except EOFError:
            print(file=sys.stderr if self._quiet else sys.stdout)
            return None
        return checked_characters(line.removeprefix(_QUOTES).removesuffix(_QUOTES), "the message")

    def _ask(self, prompt: str) -> str:
        if not self._quiet:
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()


def _edit_lines() -> None:
    """Lets `input` edit lines and remember them, where Python has readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
