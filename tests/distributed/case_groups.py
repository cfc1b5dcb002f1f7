"""Cases of tests that train under many layouts: those of a file run in one group of processes per world size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forked import run_ranks

# A tuple whose first element is a `parity_cases.Layout`.
Case = Any


@dataclass
class CaseGroups:
    """Outcomes by world size; a group of processes runs all selected cases of its size at the first question.

    Attributes:
        worker: the script of a process (`trainee.run_cases`).
        selected: the cases that are asked for.
        folder: of the files between the processes.
        name_of: the name of a case.
        config_of: its configuration, as JSON has it.
        by_hand: cases of one process that are also computed by hand.
    """

    worker: Path
    selected: Sequence[Case]
    folder: Path
    name_of: Callable[[Any], str]
    config_of: Callable[[Any], dict[str, Any]]
    by_hand: Sequence[Case] = ()
    _found: dict[int, dict[str, Any]] = field(default_factory=dict)

    def outcome(self, case: Case, by_hand: bool = False) -> dict[str, Any]:
        """The outcome of a case, or of the computation by hand."""
        world = case[0].world
        if world not in self._found:
            self._found[world] = self._run(world, [one for one in self.selected if one[0].world == world])
        outcome: dict[str, Any] = self._found[world][f"naive {self.name_of(case)}" if by_hand else self.name_of(case)]
        return outcome

    def _run(self, world: int, cases: Sequence[Case]) -> dict[str, Any]:
        described = [{"name": self.name_of(case), "config": self.config_of(case)} for case in cases]
        if world == 1:
            described += [
                {"name": f"naive {self.name_of(case)}", "config": self.config_of(case), "naive": True}
                for case in cases
                if case in self.by_hand
            ]
        paths = [self.folder / f"{kind}{world}.json" for kind in ("cases", "results")]
        paths[0].write_text(json.dumps(described))
        done = run_ranks(world, [str(self.worker), *map(str, paths)], timeout=120 + 40 * len(cases))
        assert done.status == 0, done.output[-6000:]
        results: dict[str, Any] = json.loads(paths[1].read_text())
        return results


def selected_cases(request: pytest.FixtureRequest, references: Sequence[Case]) -> list[Case]:
    """The references, and the cases of this module's tests that are to run, each once."""
    items = [item for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    return list(dict.fromkeys([*references, *(item.callspec.params["case"] for item in items)]))
