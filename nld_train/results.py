"""The result of a command as JSON: `--json` prints it in place of tables, `--output FILE` writes it to a file.

The two mean the same in every command that has a result. Imports nothing heavy: files are checked before anything is.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nld_train.errors import UserError
from nld_train.files import temporary_of, write_atomically

# The options whose value is a file that a command writes.
_FILES = ("output", "plot")


def add_result_options(parser: ArgumentParser, what: str = "all figures") -> None:
    """--json and --output.

    Args:
        parser: of a command.
        what: the content of the JSON, for `--help`.
    """
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON, and nothing else")
    parser.add_argument("--output", metavar="FILE", help=f"also write {what} as JSON to this file")


def file_instead_of_switch(words: Sequence[str], message: str) -> str:
    """Explains an error about a file after `--json`, which was an option with a value in some commands.

    Args:
        words: a command line that cannot be parsed.
        message: the parser's.
    """
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        file = value if equals else following
        # Where it stands before the other arguments, it is taken for the first of them, and the last one is too many.
        refused = file in message or (file.endswith(".json") and "unrecognized arguments" in message)
        if option == "--json" and file and not file.startswith("-") and refused:
            return f"--json {file}: --json takes no file, it prints the JSON; --output {file} writes it there"
    return message


def check_result_files(arguments: Namespace) -> None:
    """Refuses files that cannot be written, before anything is computed.

    Raises:
        UserError: a file cannot be written (see `check_output`), or two options name the same file.
    """
    given = {name: value for name in _FILES if (value := getattr(arguments, name, None)) is not None}
    for name, value in given.items():
        check_output(f"--{name} {value}", Path(value))
    if len({Path(value).resolve() for value in given.values()}) < len(given):
        raise UserError(f"{', '.join(f'--{name}' for name in given)}: each needs a file of its own")


def check_output(what: str, path: Path) -> None:
    """Refuses a file that cannot be written, before the work whose result it will hold.

    Args:
        what: names the file in the message.
        path: the file, which may exist.

    Raises:
        UserError: its folder does not exist or cannot be written to, or it exists and is no regular file.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{what}: there is no folder {folder}")
    if path.is_dir():
        raise UserError(f"{what}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{what}: is no regular file")
    try:
        # Permissions alone do not tell: a file system may be read-only, or the name too long.
        with temporary_of(path).open("a"):
            pass
        temporary_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror})") from error


def give_result(
    arguments: Namespace, result: Any, show: Callable[[], None], default: Callable[[Any], Any] | None = None
) -> None:
    """Shows a result, or prints it with `--json`; writes it to `--output`.

    Args:
        arguments: a command line with `add_result_options`.
        result: of a form that JSON has.
        show: prints tables.
        default: converts values that JSON does not support.
    """
    text = json.dumps(result, indent=1, default=default)
    # The file first: a closed standard output must not cost the result.
    if arguments.output is not None:
        write_atomically(Path(arguments.output), text + "\n")
    if arguments.json:
        print(text)
    else:
        show()
