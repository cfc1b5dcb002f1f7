"""Groups of real processes, started once per world size for all the cases that were selected."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import run_ranks
from parity_cases import Case

from nld_train.config.load import config_to_dict

WORKER = Path(__file__).with_name("parity_worker.py")
Records = list[dict[str, Any]]


class Outcomes:
    """Results of cases; a group of processes runs all selected cases of its size at the first question."""

    def __init__(self, selected: Sequence[Case], folder: Path, prefix: str) -> None:
        self.selected = selected
        self.folder = folder
        self.prefix = prefix
        self.results: dict[str, Records] = {}
        self.failures: dict[int, str] = {}

    def records(self, case: Case) -> Records:
        """The records of a case; fails the test where its group did not come so far."""
        world = case.layout.world
        if case.name not in self.results and world not in self.failures:
            self._run(world)
        if case.name not in self.results:
            pytest.fail(f"{case.name} was not finished by its group:\n{self.failures[world]}")
        return self.results[case.name]

    def _run(self, world: int) -> None:
        cases = {case.name: case for case in self.selected if case.layout.world == world}
        ordered = sorted(cases.values(), key=lambda case: case.layout.name)
        described = [
            {"name": case.name, "kind": case.kind, "config": config_to_dict(case.config(self.prefix))}
            for case in ordered
        ]
        cases_path, results_path = self.folder / f"cases{world}.json", self.folder / f"results{world}.jsonl"
        cases_path.write_text(json.dumps(described))
        done = run_ranks(world, [str(WORKER), str(cases_path), str(results_path)], timeout=60 + 20 * len(cases))
        self.failures[world] = done.output[-6000:]
        for line in results_path.read_text().splitlines() if results_path.exists() else ():
            result = json.loads(line)
            self.results[result["name"]] = result["records"]
