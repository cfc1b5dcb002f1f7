"""Writes the tables of `docs/performance.md` from the results, so that no figure is copied by hand.

    python -m benchmarks.tables            write them
    python -m benchmarks.tables --check    only compare them with the results

A table is between `<!-- table: NAME -->` and `<!-- end -->`. A missing result is "not measured".
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import tables_of_commands as commands
from benchmarks import tables_of_steps as steps
from benchmarks import tables_of_targets
from benchmarks.record import RESULTS
from nld_train.files import write_atomically

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """The command line; with --check returns 1 if the page differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page")
    options = parser.parse_args(arguments)
    before = options.page.read_text()
    after = with_tables(before, options.results)
    if options.check:
        print("up to date" if before == after else f"{options.page}: differs; run python -m benchmarks.tables")
        return int(before != after)
    write_atomically(options.page, after)
    return 0


def with_tables(page: str, results: Path) -> str:
    """The page with every table written from the results."""
    return _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]](results)}{found[3]}", page)


_OF_STEPS = (
    steps.step,
    steps.answers,
    steps.memory,
    steps.baseline,
    steps.attention,
    steps.kernels,
    steps.head,
    steps.mfu,
)
_OF_COMMANDS = (
    commands.scaling,
    commands.data,
    commands.many_documents,
    commands.start,
    commands.convert,
    commands.decode,
    commands.forwards,
)
_LAST = (commands.decode_targets, commands.runs, tables_of_targets.targets)
TABLES: dict[str, Callable[[Path], str]] = {each.__name__: each for each in (*_OF_STEPS, *_OF_COMMANDS, *_LAST)}

if __name__ == "__main__":
    sys.exit(main())
