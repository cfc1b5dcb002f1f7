"""From the outputs of finished steps to the figures: rows by table, claims with their verdicts, curves of losses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.paper.claims import CLAIMS, TABLES, Claim, PaperTable, Value
from benchmarks.paper.design import Design
from benchmarks.paper.measures import LOSSES, read_records
from benchmarks.paper.statistics import Estimate, verdict


def claim_result(claim: Claim, seeds: tuple[int, ...], design: Design, folder: Path) -> dict[str, Any]:
    """A claim with what was found."""
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
        "differences": list(differences),
        "verdict": verdict(differences),
    }


def all_claims(design: Design, folder: Path) -> list[dict[str, Any]]:
    """Every claim."""
    seeds = {table.name: table.seeds_of(design) for table in TABLES}
    return [claim_result(claim, seeds[claim.table], design, folder) for claim in CLAIMS]


def all_figures(design: Design, folder: Path) -> dict[str, Any]:
    """The design, the rows of every table, and the curves."""
    return {
        "design": asdict(design),
        "tables": {table.name: _rows(table, design, folder) for table in TABLES},
        "curves": {table.name: _curves(table, design, folder) for table in TABLES if table.curves},
    }


def _rows(table: PaperTable, design: Design, folder: Path) -> dict[str, Any]:
    """By row, and in it by the title of a column, the mean, its standard error and the values by seed."""
    seeds = table.seeds_of(design)

    def cell(row: str, column: tuple[str, Any, str, str]) -> dict[str, Any]:
        found = Value(row, column[1], column[2]).estimate(seeds, design, folder)
        return {"mean": found.mean, "standard_error": found.standard_error, "values": list(found.values)}

    return {row: {column[0]: cell(row, column) for column in table.columns} for row in table.rows}


def _curves(table: PaperTable, design: Design, folder: Path) -> dict[str, Any]:
    """By row the held-out losses at each number of tokens, means over the seeds that are measured."""
    found = {}
    for row in table.rows:
        steps = [LOSSES.step(row, seed, design) for seed in table.seeds_of(design)]
        runs = [read_records(step.path(folder)) for step in steps if step.finished(folder)]
        found[row] = [
            {key: fmean(point[key] for point in points) for key in ("tokens", "ar", "diffusion")}
            for points in zip(*runs, strict=True)
        ]
    return found
