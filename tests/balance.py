"""Which tests begin first, and which stay in one worker: so that all workers end at about the same time.

`durations.json` has the seconds of each file's tests, those that are long apart from the others. It need not be exact:
`make test-all ARGUMENTS=--record-durations` writes it anew.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).parent
RECORDED = TESTS / "durations.json"
# Their tests share nothing that takes time, and take so much of it that one worker alone would be late.
APART = ("repository/test_readme.py",)
LONG = " (long)"


def kind_of(item: pytest.Item) -> str:
    """The file of a test, and whether the test is long."""
    file = item.path.relative_to(TESTS).as_posix()
    return f"{file}{LONG}" if item.get_closest_marker("long") else file


def arrange(items: list[pytest.Item]) -> None:
    """Puts the longest files first, each with its tests together."""
    recorded: dict[str, float] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    seconds: dict[str, float] = defaultdict(float)
    for kind in {kind_of(item) for item in items}:
        seconds[kind.removesuffix(LONG)] += recorded.get(kind, 0.0)
    files = sorted(seconds, key=lambda file: (-seconds[file], file))
    items.sort(key=lambda item: files.index(kind_of(item).removesuffix(LONG)))


class ByFile(LoadScopeScheduling):
    """Gives a worker that has nothing to do the next file, or the next test of a file in `APART`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file.removeprefix(f"{TESTS.name}/") in APART else file


class Recorder:
    """Adds up how long the tests of each file take, and writes it at the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Setup, call and teardown of a test."""
        path = Path(report.nodeid.partition("::")[0])
        file = path.relative_to(TESTS.name).as_posix()
        self.seconds[f"{file}{LONG}" if "long" in report.keywords else file] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Files that were not run keep what they had."""
        old = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        new = {file: round(seconds, 1) for file, seconds in self.seconds.items()}
        RECORDED.write_text(json.dumps(dict(sorted((old | new).items())), indent=2) + "\n")
