"""From the outputs of finished steps to the figures: rows by table, claims with their verdicts, curves of losses."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.paper.claim import Claim, PaperTable, Value
from benchmarks.paper.claims import TABLES
from benchmarks.paper.design import Design
from benchmarks.paper.measures import LOSSES, read_records
from benchmarks.paper.statistics import Estimate, verdict
from benchmarks.record import machine
from nld_train.revision import git_revision


def claim_result(claim: Claim, seeds: tuple[int, ...], design: Design, folder: Path) -> dict[str, Any]:
    """A claim with what was found; it is not decided before all seeds are measured."""
    differences = claim.differences(seeds, design, folder)
    estimate = Estimate(differences)
    return {
        "name": claim.name,
        "claim": claim.text,
        "unit": claim.unit,
        "paper": claim.paper,
        "ours": estimate.mean,
        "standard_error": estimate.standard_error,
        "seeds": len(differences),
        "seeds_of_design": len(seeds),
        "differences": list(differences),
        "verdict": verdict(differences) if len(differences) == len(seeds) else "undecided",
    }


def all_claims(design: Design, folder: Path) -> list[dict[str, Any]]:
    """Every claim, in the order of the tables."""
    return [claim_result(claim, table.seeds_of(design), design, folder) for table in TABLES for claim in table.claims]


def all_figures(design: Design, folder: Path) -> dict[str, Any]:
    """The design, the rows of every table, the curves, and where each table was measured, as JSON values."""
    origin = {"git_revision": git_revision(), "machine": machine()}
    return {
        "design": json.loads(json.dumps(asdict(design))),
        "tables": {table.name: _rows(table, design, folder) for table in TABLES},
        "curves": {table.name: _curves(table, design, folder) for table in TABLES if table.curves},
        "origins": {table.name: origin for table in TABLES},
    }


def _rows(table: PaperTable, design: Design, folder: Path) -> dict[str, Any]:
    """By line, and in it by the title of a column, the mean, its standard error and the values by seed."""
    seeds = table.seeds_of(design)

    def cell(value: Value) -> dict[str, Any]:
        found = value.estimate(seeds, design, folder)
        return {"mean": found.mean, "standard_error": found.standard_error, "values": list(found.values)}

    titles = [column.title for column in table.columns]
    return {line.label: dict(zip(titles, map(cell, line.values), strict=True)) for line in table.lines}


def _curves(table: PaperTable, design: Design, folder: Path) -> dict[str, Any]:
    """By row the held-out losses at each number of tokens, means over the seeds that are measured."""
    found = {}
    for row in table.curves:
        steps = [LOSSES.step(row, seed, design) for seed in table.seeds_of(design)]
        runs = [read_records(step.path(folder)) for step in steps if step.finished(folder)]
        found[row] = [
            {key: fmean(point[key] for point in points) for key in ("tokens", "ar", "diffusion")}
            for points in zip(*runs, strict=True)
        ]
    return found
