"""The command `nld-status`: where a run stands, while it runs or after it died."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nld_train.errors import UserError

_DESCRIPTION = """Where a run stands: stage, step, tokens, rate, time left, checkpoints, losses, spikes.

Reads the run's directory and nothing else: it works while the run is under way, on any machine that sees the files.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after one line where there is no run."""
    parser = argparse.ArgumentParser(
        prog="nld-status", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="run.dir of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument(
        "--checksums",
        action="store_true",
        help="read the newest checkpoint and compare its checksums (slow where large)",
    )
    options = parser.parse_args(arguments)

    from nld_train.monitoring.run_status import standing

    try:
        found = standing(options.directory, options.checksums)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    from nld_train.monitoring.show import show

    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
