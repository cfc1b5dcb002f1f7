"""Tables 1 to 3 and Figure 4 of the paper: how a model is trained; and what their results asked for."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.paper.claim import LOSS, SHARE, Claim, PaperTable, RowColumn, Unit, Value, columns_of, lines_of
from benchmarks.paper.measures import AR, DIFFUSION, LOSSES, MASKED
from benchmarks.paper.rows import ALPHAS

_DIFFUSION_LOSS: RowColumn = ("diffusion loss", LOSSES, "diffusion", LOSS)
_AR_LOSS: RowColumn = ("AR loss", LOSSES, "ar", LOSS)
_MASKED: RowColumn = ("diffusion", MASKED, "exact", SHARE)
_AR: RowColumn = ("AR", AR, "exact", SHARE)
_SEEDED: RowColumn = ("diffusion", DIFFUSION, "exact", SHARE)


def of_rows(
    name: str,
    title: str,
    text: str,
    rows: tuple[str, ...],
    columns: tuple[RowColumn, ...],
    claims: tuple[Claim, ...],
    seeds: int | None = None,
    curves: tuple[str, ...] = (),
) -> PaperTable:
    """A table whose lines are rows."""
    return PaperTable(name, title, text, columns_of(columns), lines_of(rows, columns), claims, seeds, curves)


def _table_1() -> PaperTable:
    rows = ("block_wise", "global_averaging", "varying_mask_ratio", "two_stages", "joint")
    claimed = (
        ("global_averaging", "averaging over the global batch instead of per sequence helps", 2.12),
        ("varying_mask_ratio", "a noise level of its own for each sequence helps", 0.71),
        ("two_stages", "AR training before diffusion helps", 5.74),
        ("ar_loss", "a causal clean stream with the AR loss helps", 7.48),
    )
    claims = tuple(
        Claim(f"table_1/{name}", text, Value(row, MASKED, "exact"), Value(before, MASKED, "exact"), "points", paper)
        for (before, row), (name, text, paper) in zip(pairwise(rows), claimed, strict=True)
    )
    return of_rows(
        "table_1",
        "Table 1: what makes block diffusion work",
        "Exact answers in diffusion mode, whose blocks begin with a mask. Each row adds to the one before.",
        rows,
        (_MASKED, _DIFFUSION_LOSS),
        claims,
    )


def _table_1_looked_into() -> PaperTable:
    tried = "levels_with_means_per_sequence"
    claimed = (
        ("weights", "with independent levels, a mean per sequence is better than a global one", "varying_mask_ratio"),
        ("levels", "with a mean per sequence, independent levels are better than one for all", "block_wise"),
    )
    return of_rows(
        "table_1_looked_into",
        "Table 1, looked into: independent levels",
        "One further experiment, written down after two seeds of Table 1, whose second claim points the other way. The "
        "guess: under a global mean a sequence weighs as much as it has masked tokens, so that independent levels move "
        "weight from little noise, which most passes of the decoder see, to much; one level for all, or a mean per "
        "sequence, weighs all levels alike. The first claim says so, the second compares the levels without it.",
        ("block_wise", "varying_mask_ratio", tried),
        (_MASKED, _DIFFUSION_LOSS),
        tuple(
            Claim(
                f"table_1_looked_into/{name}",
                text,
                Value(tried, MASKED, "exact"),
                Value(row, MASKED, "exact"),
                "points",
            )
            for name, text, row in claimed
        ),
    )


def _table_2() -> PaperTable:
    paper = {
        "diffusion": {"0.1": 68.20, "0.2": 68.62, "0.3": 69.77, "0.5": 68.78, "1.0": 66.93},
        "AR": {"0.1": 68.71, "0.2": 70.50, "0.3": 70.62, "0.5": 68.96, "1.0": 67.22},
    }
    claims = tuple(
        Claim(
            f"table_2/{mode.lower()}_over_alpha_{alpha}",
            f"alpha 0.3 is better than {alpha} in {mode} mode",
            Value("joint", measure, "exact"),
            Value(f"alpha_{alpha}", measure, "exact"),
            "points",
            round(paper[mode]["0.3"] - paper[mode][alpha], 2),
        )
        for mode, measure in (("diffusion", DIFFUSION), ("AR", AR))
        for alpha in ALPHAS
        if alpha != "0.3"
    )
    return of_rows(
        "table_2",
        "Table 2: the weight of the diffusion loss",
        "Exact answers in both modes. The paper's optimum is alpha 0.3 in both; here it is where the table has the "
        "largest means.",
        tuple("joint" if alpha == "0.3" else f"alpha_{alpha}" for alpha in ALPHAS),
        (_SEEDED, _AR, _DIFFUSION_LOSS, _AR_LOSS),
        claims,
    )


def _table_3() -> PaperTable:
    return of_rows(
        "table_3",
        "Table 3: what the diffusion loss does to AR",
        "Exact answers in AR mode, with as many tokens of both trainings.",
        ("ar_only", "joint"),
        (_AR, _AR_LOSS),
        (
            Claim(
                "table_3/joint_training_helps_ar",
                "joint training answers better in AR mode than AR training with as many tokens",
                Value("joint", AR, "exact"),
                Value("ar_only", AR, "exact"),
                "points",
            ),
            Claim(
                "table_3/ar_loss",
                "joint training has a lower held-out AR loss than AR training with as many tokens (ours)",
                Value("ar_only", LOSSES, "ar"),
                Value("joint", LOSSES, "ar"),
                "nats",
            ),
        ),
    )


def _figure_4() -> PaperTable:
    losses: Unit = "nats"
    return of_rows(
        "figure_4",
        "Figure 4: the AR loss helps diffusion",
        "The same training without the AR loss and nothing else changed. Blocks begin with a mask.",
        ("no_ar_loss", "joint"),
        (_MASKED, _DIFFUSION_LOSS, _AR_LOSS),
        (
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
                losses,
            ),
            Claim(
                "figure_4/ar_loss",
                "without the AR loss the AR mode is lost (ours)",
                Value("no_ar_loss", LOSSES, "ar"),
                Value("joint", LOSSES, "ar"),
                losses,
            ),
        ),
        curves=("no_ar_loss", "joint"),
    )


TABLES_OF_TRAINING = (_table_1(), _table_2(), _table_3(), _figure_4())
LOOKED_INTO = (_table_1_looked_into(),)
