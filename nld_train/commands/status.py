"""The command `nld-status`: the status of a run, while it runs or after it has ended."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nld_train.commands.command import Command

_DESCRIPTION = """The status of a run: stage, step, tokens, rate, time left, checkpoints, losses, spikes.

Reads the run's directory and nothing else: it works during the run, on any machine that can read the files.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="run.dir of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument(
        "--checksums",
        action="store_true",
        help="read the newest checkpoint and compare its checksums (slow where large)",
    )


def _show_status(arguments: argparse.Namespace) -> None:
    from nld_train.monitoring.run_status import run_status

    found = run_status(arguments.directory, arguments.checksums)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    from nld_train.monitoring.show import show

    show(found)


main = Command("nld-status", _DESCRIPTION, _add_arguments, _show_status)

if __name__ == "__main__":
    sys.exit(main())
