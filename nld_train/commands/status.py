"""The command `nld-status`: the status of a run, while it runs or after it has ended."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nld_train.commands.command import Command
from nld_train.results import add_result_options, check_result_files, give_result

_DESCRIPTION = """The status of a run: stage, step, tokens, rate, time left, checkpoints, losses, spikes.

Reads the run's directory and nothing else: it works during the run, on any machine that can read the files.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="run.dir of the run")
    add_result_options(parser, "the status")
    parser.add_argument(
        "--checksums",
        action="store_true",
        help="read the newest checkpoint and compare its checksums (slow where large)",
    )


def _show_status(arguments: argparse.Namespace) -> None:
    from nld_train.monitoring.run_status import run_status

    found = run_status(arguments.directory, arguments.checksums)

    def table() -> None:
        from nld_train.monitoring.show import show

        show(found)

    give_result(arguments, found, table)


main = Command("nld-status", _DESCRIPTION, _add_arguments, _show_status, check_result_files)

if __name__ == "__main__":
    sys.exit(main())
