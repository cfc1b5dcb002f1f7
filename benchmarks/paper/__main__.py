"""The paper's claims, tested with error bars: trains and measures every row, and writes docs/paper.md.

    python -m benchmarks.paper                       everything, two steps at a time; started again, it goes on
    python -m benchmarks.paper --tables table_2      one table
    python -m benchmarks.paper --report              the page from what is finished, without running anything
    python -m benchmarks.paper --small --folder F    two rows and two seeds in a minute, written into F

A step that is finished is not repeated; a training that was killed goes on from its newest checkpoint. Runs are kept in
--folder, which is no part of the repository; the figures are in benchmarks/results/paper.json. A table of which that
file has more measurements than the folder keeps them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.paper.claims import TABLES
from benchmarks.paper.design import SMALL, Design
from benchmarks.paper.document import page
from benchmarks.paper.earlier import with_earlier
from benchmarks.paper.plots import draw_all
from benchmarks.paper.results import all_claims, all_figures
from benchmarks.paper.runner import Runner, own_folder
from benchmarks.record import RESULTS, write_result
from benchmarks.results_table import load
from benchmarks.row_process import ROOT, Stop, stoppable
from nld_train.errors import exit_status
from nld_train.files import write_atomically

NAME = "paper"
# What --small runs.
_SMALL_TABLE = "figure_4"


def main(arguments: list[str] | None = None, launch: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if a step failed, and 128 plus the signal's number if a signal ended it.

    Args:
        arguments: of the command line.
        launch: the beginning of the steps' command lines, before the module's name.
    """
    options = _parse(arguments)
    design = _design(options)
    tables = [table for table in TABLES if not options.tables or table.name in options.tables]
    folder = options.folder.resolve()
    failed, stop = [], Stop()
    if not options.report:
        runner = Runner(folder, options.jobs, launch or (sys.executable, "-m"), _say)
        with own_folder(folder), stoppable() as stop:
            failed = runner.run([step for table in tables for step in table.steps(design)], stop)
    write_report(design, folder, options.results, options.page)
    if stop.number is not None:
        return 128 + stop.number
    return int(bool(failed))


def write_report(design: Design, folder: Path, results: Path, document: Path) -> None:
    """Writes `paper.json`, the plots and the page, from what is finished here or in the report that was there."""
    found = all_figures(design, folder), all_claims(design, folder)
    figures, claims = with_earlier(*found, load(results, NAME))
    _say(str(write_result(NAME, figures, results, claims=claims)))
    result = load(results, NAME)
    assert result is not None
    for path in draw_all(result, document.parent / NAME):
        _say(str(path))
    write_atomically(document, page(design, result))
    _say(str(document))


def _say(line: str) -> None:
    print(line, flush=True)


def _design(options: argparse.Namespace) -> Design:
    design = SMALL if options.small else Design()
    tokens = {stage: int(number * options.tokens) for stage, number in design.tokens.items()}
    settings = (*design.settings, f"execution.device={options.device}", *options.settings)
    seeds = design.seeds if options.seeds is None else tuple(range(options.seeds))
    return replace(design, tokens=tokens, settings=settings, seeds=seeds)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [table.name for table in TABLES]
    parser.add_argument("settings", nargs="*", help="more settings of every training, as for nld-train: model=..., ...")
    parser.add_argument("--tables", nargs="+", metavar="TABLE", help=f"only these: {', '.join(names)} (default: all)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/paper", help="of the runs (default: runs/paper)")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="steps at a time (default: cores)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the trainings (default: cpu)")
    parser.add_argument("--tokens", type=float, default=1.0, help="multiplies the tokens of every stage (default: 1)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the design's)")
    parser.add_argument("--report", action="store_true", help="run nothing; write the page from what is finished")
    parser.add_argument("--small", action="store_true", help="a tiny model, to check that everything runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/paper.md", help="the page")
    options = parser.parse_args(arguments)
    if unknown := set(options.tables or ()) - set(names):
        parser.error(f"--tables: no table {sorted(unknown)}; tables: {', '.join(names)}")
    if options.jobs < 1 or options.tokens <= 0 or (options.seeds is not None and options.seeds < 1):
        parser.error("--jobs and --seeds must be at least 1, --tokens above 0")
    if options.small:
        if options.results == RESULTS or options.page == ROOT / "docs/paper.md":
            parser.error("--small: its figures mean nothing; name others with --results and --page")
        options.tables = options.tables or [_SMALL_TABLE]
    return options


if __name__ == "__main__":
    sys.exit(exit_status(main))
