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
from nld_train.files import write_atomically

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
        UserError: the folder of a file does not exist, or the file is a folder.
    """
    for name in _FILES:
        given = getattr(arguments, name, None)
        if given is None:
            continue
        path = Path(given).absolute()
        if not path.parent.is_dir():
            raise UserError(f"--{name} {given}: there is no folder {path.parent}")
        if path.is_dir():
            raise UserError(f"--{name} {given}: is a folder; name a file")


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
