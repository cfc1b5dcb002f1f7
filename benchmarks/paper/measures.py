"""What is measured on a training: a step that writes a JSON, and how numbers are read from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.paper.design import Design
from benchmarks.paper.rows import data_step, training_step
from benchmarks.paper.steps import Step

Numbers = dict[str, float]
_GROUP = "nld_tasks"


@dataclass(frozen=True)
class Measure:
    """A measurement of a row under a seed.

    Attributes:
        name: of the measurement.
        step: makes it, of the row, the seed and the design.
        read: numbers by name from the step's output.
    """

    name: str
    step: Callable[[str, int, Design], Step]
    read: Callable[[Path], Numbers]

    def numbers(self, row: str, seed: int, design: Design, folder: Path) -> Numbers | None:
        """The numbers; None where the step is not finished."""
        step = self.step(row, seed, design)
        return self.read(step.path(folder)) if step.finished(folder) else None


def read_records(run: Path) -> list[dict[str, Any]]:
    """The validations of a run: `tokens`, `ar` and `diffusion`, held-out losses in nats per token, the latter the mean
    over noise levels (None without a noisy stream)."""
    found = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "validation" in record:
            levels = record["validation"]["diffusion_loss"].values()
            losses = {"ar": record["validation"]["ar_loss"], "diffusion": fmean(levels) if levels else None}
            found.append({"tokens": record["tokens"], **losses})
    return found


def _last_losses(run: Path) -> Numbers:
    last = read_records(run)[-1]
    return {name: last[name] for name in ("ar", "diffusion") if last[name] is not None}


def _harness(mode: str, *options: str) -> Callable[[str, int, Design], Step]:
    def step(row: str, seed: int, design: Design) -> Step:
        words = ["nld_train.commands.eval", "{0}", "--mode", mode, "--tasks", _GROUP, "--include-path", "{1}/harness"]
        words += ["--apply-chat-template", "--batch-size", "128", "--max-new-tokens", str(design.max_new_tokens)]
        after = (training_step(row, seed, design), data_step(design))
        label = f"{row}-seed-{seed}-{mode}"
        return Step(label, "measured", ((*words, *options, "--output", "{own}"),), after)

    return step


def _read_harness(path: Path) -> Numbers:
    """`exact.KIND`, their mean `exact`, which is that over all questions, and `tokens_per_forward` over all."""
    results = json.loads(path.read_text())
    prefix = f"{_GROUP}_"
    kinds = {name: found for name, found in results["results"].items() if name.startswith(prefix)}
    numbers = {f"exact.{name.removeprefix(prefix)}": found["exact_match,none"] for name, found in kinds.items()}
    numbers["exact"] = fmean(numbers.values())
    generation = results["evaluation"]["generation"].values()
    tokens, forwards = (sum(one[key] for one in generation) for key in ("new_tokens", "forwards"))
    # Short answers of AR come from the prefill alone.
    return numbers if forwards == 0 else numbers | {"tokens_per_forward": tokens / forwards}


LOSSES = Measure("losses", training_step, _last_losses)
AR = Measure("ar", _harness("ar"), _read_harness)
DIFFUSION = Measure("diffusion", _harness("diffusion"), _read_harness)
# For comparisons with rows without an AR loss, which have no AR prediction to begin a block with.
MASKED = Measure("diffusion of masks", _harness("diffusion", "--block-start", "masks"), _read_harness)
