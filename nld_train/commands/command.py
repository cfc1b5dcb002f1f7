"""What all console scripts share: how they parse, report errors and exit.

Every script prints one line, `error: ...`, on standard error and exits with status 2 for an error that a user caused,
its command line included, with 130 after Ctrl-C, and silently with 141 where the reader of its output has gone. Only
the standard library is imported here, and no command imports more before its arguments are parsed, so `--help` is fast.
What a command line alone decides, and whether its files exist, is checked before torch is imported (`Command.check`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

from nld_train.errors import UserError, exit_status
from nld_train.results import file_instead_of_switch

Run = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` in place of printing the usage."""
        raise UserError(f"{message} (see {self.prog} --help)")


class PrintVersion(argparse.Action):
    """The option --version, which every command has: prints the version of this project and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version of nld-train and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """See `argparse.Action`."""
        from nld_train.revision import version_line

        print(version_line())
        parser.exit()


@dataclass(frozen=True)
class Command:
    """A console script, or a subcommand of one. Calling it parses a command line and runs it.

    Attributes:
        name: of the script or the subcommand.
        description: for `--help`; line breaks in it are kept.
        add_arguments: adds the arguments to a parser.
        run: the work, from the parsed arguments to an exit status (None is 0).
        check: refuses the arguments before `run`; imports nothing that takes seconds.
        subcommands: in place of `add_arguments` and `run`.
        summary: of a subcommand, for the script's `--help` (default: the description).
        interrupted: the message after Ctrl-C.
    """

    name: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None
    run: Run | None = None
    check: Callable[[argparse.Namespace], object] | None = None
    subcommands: tuple[Command, ...] = ()
    summary: str = ""
    interrupted: str = "interrupted"

    def __call__(self, words: Sequence[str] | None = None) -> int:
        """Runs a command line (default: that of this process); returns the exit status."""
        parsed: list[argparse.Namespace] = []
        status = exit_status(lambda: parsed.append(self._parse(words)), every_rank=False)
        if not parsed:  # refused, or --help
            return status
        (arguments,) = parsed
        chosen: Command = arguments.chosen_command
        return exit_status(lambda: chosen._start(arguments), chosen.interrupted)

    def _parse(self, words: Sequence[str] | None) -> argparse.Namespace:
        try:
            return self.parser().parse_args(words)
        except UserError as error:
            given = sys.argv[1:] if words is None else words
            raise UserError(file_instead_of_switch(given, str(error))) from error

    def _start(self, arguments: argparse.Namespace) -> int | None:
        assert self.run is not None
        if self.check is not None:
            self.check(arguments)
        return self.run(arguments)

    def parser(self) -> argparse.ArgumentParser:
        """The parser of a command line."""
        parser = Parser(prog=self.name)
        parser.add_argument("--version", action=PrintVersion)
        self._fill(parser)
        return parser

    def _fill(self, parser: argparse.ArgumentParser) -> None:
        parser.description = self.description
        if "\n" in self.description:
            parser.formatter_class = argparse.RawDescriptionHelpFormatter
        if self.add_arguments is not None:
            self.add_arguments(parser)
        if self.run is not None:
            parser.set_defaults(chosen_command=self)
        if self.subcommands:
            parsers = parser.add_subparsers(required=True, metavar="COMMAND")
            for command in self.subcommands:
                command._fill(parsers.add_parser(command.name, help=command.summary or command.description))


@dataclass(frozen=True)
class Imported:
    """A function, to run or to check, whose module is imported when it is called.

    Attributes:
        path: `module:function`.
    """

    path: str

    def __call__(self, arguments: argparse.Namespace) -> int | None:
        """Runs a command; see `Command.run`."""
        module, _, name = self.path.partition(":")
        status: int | None = getattr(import_module(module), name)(arguments)
        return status


def utf8(word: str) -> str:
    """The type of an argument that is text. Python lets bytes that are not UTF-8 pass in file names and all others.

    Raises:
        argparse.ArgumentTypeError: there are such bytes.
    """
    try:
        word.encode()
    except UnicodeEncodeError as error:
        byte = f"0x{ord(word[error.start]) & 0xFF:02x}"
        raise argparse.ArgumentTypeError(f"is not UTF-8: byte {byte} after {word[: error.start]!r}") from None
    return word
