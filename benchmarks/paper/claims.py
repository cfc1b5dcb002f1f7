"""The paper's claims, one object each, and the tables that they belong to, the most wanted first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from benchmarks.paper.design import Design
from benchmarks.paper.measures import AR, DIFFUSION, LOSSES, MASKED, Measure
from benchmarks.paper.rows import ALPHAS
from benchmarks.paper.statistics import Estimate
from benchmarks.paper.steps import Step

Unit = Literal["points", "nats", "percent"]


@dataclass(frozen=True)
class Value:
    """A number of a row: a key of what a measurement reads."""

    row: str
    measure: Measure
    key: str

    def of(self, seed: int, design: Design, folder: Path) -> float | None:
        """Under a seed; None where it is not measured."""
        numbers = self.measure.numbers(self.row, seed, design, folder)
        return None if numbers is None else numbers[self.key]

    def estimate(self, seeds: tuple[int, ...], design: Design, folder: Path) -> Estimate:
        """Over the seeds that are measured."""
        values = [self.of(seed, design, folder) for seed in seeds]
        return Estimate(tuple(value for value in values if value is not None))


@dataclass(frozen=True)
class Claim:
    """`more` is larger than `less`.

    Attributes:
        name: `table/claim`.
        text: the claim in words.
        more: what is larger by the claim.
        less: what is smaller.
        unit: of the difference: `points` of a share in percent, `nats`, or `percent` of `less`.
        paper: the paper's difference in this unit; None where it gives none, or the claim is ours.
    """

    name: str
    text: str
    more: Value
    less: Value
    unit: Unit
    paper: float | None = None

    @property
    def table(self) -> str:
        """Name of the table."""
        return self.name.partition("/")[0]

    def differences(self, seeds: tuple[int, ...], design: Design, folder: Path) -> tuple[float, ...]:
        """One for each seed of which both are measured: positive in the direction of the claim."""
        pairs = [(self.more.of(seed, design, folder), self.less.of(seed, design, folder)) for seed in seeds]
        return tuple(self._difference(more, less) for more, less in pairs if more is not None and less is not None)

    def _difference(self, more: float, less: float) -> float:
        if self.unit == "percent":
            return 100 * (more / less - 1)
        return (more - less) * (100 if self.unit == "points" else 1)


@dataclass(frozen=True)
class PaperTable:
    """A table or figure of the paper.

    Attributes:
        name: of the table.
        title: of its section.
        text: what is compared.
        rows: names of the rows that it shows.
        columns: title, measurement, key and format of each number that it shows of a row.
        seeds: how many of the design's seeds it takes; None for all.
        curves: whether held-out losses over tokens are plotted.
    """

    name: str
    title: str
    text: str
    rows: tuple[str, ...]
    columns: tuple[tuple[str, Measure, str, str], ...]
    seeds: int | None = None
    curves: bool = False

    def seeds_of(self, design: Design) -> tuple[int, ...]:
        """The seeds of this table."""
        return design.seeds[: self.seeds]

    @property
    def claims(self) -> list[Claim]:
        """Those of this table."""
        return [claim for claim in CLAIMS if claim.table == self.name]

    def steps(self, design: Design) -> list[Step]:
        """What has to be run for it, seed by seed."""
        used = [(value.row, value.measure) for claim in self.claims for value in (claim.less, claim.more)]
        shown = [(row, measure) for row in self.rows for _, measure, _, _ in self.columns]
        wanted = list(dict.fromkeys([*shown, *used]))
        return [measure.step(row, seed, design) for seed in self.seeds_of(design) for row, measure in wanted]


_SHARE, _LOSS = ".1%", ".3f"
_DIFFUSION_LOSS = ("diffusion loss", LOSSES, "diffusion", _LOSS)
_AR_LOSS = ("AR loss", LOSSES, "ar", _LOSS)
_MASKED = ("diffusion", MASKED, "exact", _SHARE)
_AR = ("AR", AR, "exact", _SHARE)
_SEEDED = ("diffusion", DIFFUSION, "exact", _SHARE)

_TABLE_1 = ("block_wise", "global_averaging", "varying_mask_ratio", "two_stages", "joint")
_ALPHA_ROWS = tuple("joint" if alpha == "0.3" else f"alpha_{alpha}" for alpha in ALPHAS)

TABLES = (
    PaperTable(
        "table_1",
        "Table 1: what makes block diffusion work",
        "Exact answers in diffusion mode, whose blocks begin with a mask. Each row adds to the one before.",
        _TABLE_1,
        (_MASKED, _DIFFUSION_LOSS),
    ),
    PaperTable(
        "table_2",
        "Table 2: the weight of the diffusion loss",
        "Exact answers in both modes. The paper's optimum is alpha 0.3 in both.",
        _ALPHA_ROWS,
        (_SEEDED, _AR, _DIFFUSION_LOSS, _AR_LOSS),
    ),
    PaperTable(
        "table_3",
        "Table 3: what the diffusion loss costs AR",
        "Exact answers in AR mode, with as many tokens of both trainings.",
        ("ar_only", "joint"),
        (_AR, _AR_LOSS),
    ),
    PaperTable(
        "figure_4",
        "Figure 4: the AR loss helps diffusion",
        "The same training without the AR loss and nothing else changed. Blocks begin with a mask.",
        ("no_ar_loss", "joint"),
        (_MASKED, _DIFFUSION_LOSS, _AR_LOSS),
        curves=True,
    ),
)


def _steps_of_table_1() -> tuple[Claim, ...]:
    texts = {
        "global_averaging": ("averaging over the global batch instead of per sequence helps", 2.12),
        "varying_mask_ratio": ("a noise level of its own for each sequence helps", 0.71),
        "two_stages": ("AR training before diffusion helps", 5.74),
        "joint": ("a causal clean stream with the AR loss helps", 7.48),
    }
    names = {"joint": "ar_loss"}
    return tuple(
        Claim(
            f"table_1/{names.get(row, row)}",
            texts[row][0],
            Value(row, MASKED, "exact"),
            Value(before, MASKED, "exact"),
            "points",
            texts[row][1],
        )
        for before, row in pairwise(_TABLE_1)
    )


def _optimum_of_table_2() -> tuple[Claim, ...]:
    paper = {
        "diffusion": {"0.1": 68.20, "0.2": 68.62, "0.3": 69.77, "0.5": 68.78, "1.0": 66.93},
        "ar": {"0.1": 68.71, "0.2": 70.50, "0.3": 70.62, "0.5": 68.96, "1.0": 67.22},
    }
    return tuple(
        Claim(
            f"table_2/{mode}_over_alpha_{alpha}",
            f"alpha 0.3 is better than {alpha} in {'AR' if mode == 'ar' else mode} mode",
            Value("joint", measure, "exact"),
            Value(f"alpha_{alpha}", measure, "exact"),
            "points",
            round(paper[mode]["0.3"] - paper[mode][alpha], 2),
        )
        for mode, measure in (("diffusion", DIFFUSION), ("ar", AR))
        for alpha in ALPHAS
        if alpha != "0.3"
    )


CLAIMS = (
    *_steps_of_table_1(),
    *_optimum_of_table_2(),
    Claim(
        "table_3/joint_training_helps_ar",
        "joint training answers at least as well in AR mode as AR training with as many tokens",
        Value("joint", AR, "exact"),
        Value("ar_only", AR, "exact"),
        "points",
    ),
    Claim(
        "figure_4/accuracy",
        "the AR loss helps diffusion: exact answers",
        Value("joint", MASKED, "exact"),
        Value("no_ar_loss", MASKED, "exact"),
        "points",
    ),
    Claim(
        "figure_4/diffusion_loss",
        "the AR loss helps diffusion: held-out diffusion loss",
        Value("no_ar_loss", LOSSES, "diffusion"),
        Value("joint", LOSSES, "diffusion"),
        "nats",
    ),
    Claim(
        "figure_4/ar_loss",
        "without the AR loss the AR mode is lost (ours)",
        Value("no_ar_loss", LOSSES, "ar"),
        Value("joint", LOSSES, "ar"),
        "nats",
    ),
)
