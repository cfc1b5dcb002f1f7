"""Measurements of the decode modes on a row's model with its drafter adapter: speed, acceptance, bound, sampler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.paper.design import Design
from benchmarks.paper.measures import Measure, Numbers
from benchmarks.paper.rows import adapter_step, data_step, prompts_step, questions_step
from benchmarks.paper.steps import Step

ENSEMBLE = 0.5
THRESHOLDS = ("0.5", "0.7", "0.95")
LENGTHS = (4, 8, 16, 32)
# Of the bound, whose search is long: questions of each kind. Of the sampler: all, a fifth of them to be tested on.
_OF_THE_BOUND, _OF_THE_SAMPLER = 3, 480
# The sampler and confidence are compared where this share of tokens is that of one token per pass.
SAME_TOKENS = 0.98


def _exact(*options: str) -> Callable[[str, int, Design], Step]:
    def step(row: str, seed: int, design: Design) -> Step:
        words = ["nld_train.commands.exact", "{0}", "--prompts", "{1}/held-out.jsonl", "--batch-size", "128"]
        words += ["--max-new-tokens", str(design.max_new_tokens), *options, "--output", "{own}"]
        after = (adapter_step(row, seed, design), data_step(design))
        return Step(f"{row}-seed-{seed}-exact", "measured", (tuple(words),), after)

    return step


def _read_exact(path: Path) -> Numbers:
    """`exact` and `tokens_per_forward` over all questions, as `MODE.exact` and so on."""
    found = json.loads(path.read_text())
    names = ("exact", "tokens_per_forward")
    return {f"{mode}.{name}": kinds["all"][name] for mode, kinds in found.items() for name in names}


def _read_acceptance(run: Path) -> Numbers:
    """Acceptance rates by position, `MODE.POSITION`, of the last decoding of a drafter stage."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    modes = [record for record in records if "decoding" in record][-1]["decoding"]["modes"]
    return {
        f"{mode}.{position}": rate
        for mode, figures in modes.items()
        for position, rate in figures.get("acceptance", {}).items()
        if rate is not None
    }


def _bound(row: str, seed: int, design: Design) -> Step:
    words = ["nld_train.commands.bound", "{0}", "--prompts", "{1}", "--block-lengths", ",".join(map(str, LENGTHS))]
    words += ["--max-new-tokens", str(design.max_new_tokens), "--batch-size", "32", "--output", "{own}"]
    after = (adapter_step(row, seed, design), questions_step(_OF_THE_BOUND, design))
    return Step(f"{row}-seed-{seed}-bound", "measured", (tuple(words),), after)


def _read_bound(path: Path) -> Numbers:
    """Unweighted means over kinds, `LENGTH.VARIANT.NAME`."""
    found: Numbers = {}
    for bound in json.loads(path.read_text())["bounds"]:
        for variant, figures in bound["variants"].items():
            for name in ("accepted_length", "tokens_per_forward"):
                if (value := figures["mean_over_categories"].get(name)) is not None:
                    found[f"{bound['block_length']}.{variant}.{name}"] = value
    return found


def _sampler(row: str, seed: int, design: Design) -> Step:
    words = ["nld_train.commands.sampler", "{0}", "--prompts", "{1}", "--sampler", "{own}-sampler"]
    words += ["--max-new-tokens", str(design.max_new_tokens), "--batch-size", "128", "--seed", str(seed)]
    # Smaller than the paper's, as the model is.
    words += ["--width", "64", "--layers", "2", "--heads", "2", "--trained-block-lengths", "8,16", "--held-out", "0.2"]
    words += ["--output", "{own}"]
    after = (adapter_step(row, seed, design), prompts_step(_OF_THE_SAMPLER, design))
    return Step(f"{row}-seed-{seed}-sampler", "measured", (tuple(words),), after)


def _read_sampler(path: Path) -> Numbers:
    """The AUC of both, and their tokens per forward at `SAME_TOKENS`."""
    found = json.loads(path.read_text())
    slow: float = found["one_per_pass"]["tokens_per_forward"]
    speeds = {name: fastest(points, slow) for name, points in found["curves"].items()}
    return {f"{name}.tokens_per_forward": speed for name, speed in speeds.items()} | {
        name: found[name] for name in ("auc", "auc_of_confidence") if found[name] is not None
    }


def fastest(points: list[dict[str, Any]], one_per_pass: float) -> float:
    """The most tokens per forward of a curve at `SAME_TOKENS`, at least that of one token per pass, which has all."""
    good = (one["tokens_per_forward"] for one in points if one["agreement_with_one_per_pass"] >= SAME_TOKENS)
    return max([one_per_pass, *good])


MODES = Measure("modes", _exact("--adapter", "--ar-weight", str(ENSEMBLE)), _read_exact)
AT_THRESHOLD = {
    threshold: Measure(f"threshold {threshold}", _exact("--modes", "diffusion", "--threshold", threshold), _read_exact)
    for threshold in THRESHOLDS
}
ACCEPTANCE = Measure("acceptance", adapter_step, _read_acceptance)
BOUND = Measure("bound", _bound, _read_bound)
SAMPLER = Measure("sampler", _sampler, _read_sampler)
