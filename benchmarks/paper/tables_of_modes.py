"""Tables 4 to 7, Figures 1b and 8, and rows of our own: how a model is decoded, and what else changes it."""

from __future__ import annotations

from benchmarks.paper.claim import LOSS, SHARE, SPEED, Claim, Column, Line, PaperTable, Unit, Value
from benchmarks.paper.measures import AR, DIFFUSION, LOSSES, Measure
from benchmarks.paper.measures_of_modes import (
    ACCEPTANCE,
    AT_THRESHOLD,
    BOUND,
    ENSEMBLE,
    LENGTHS,
    MODES,
    SAME_TOKENS,
    SAMPLER,
)
from benchmarks.paper.tables import of_rows

# Seeds of all tables here.
_SEEDS = 3
_ENSEMBLE = f"quadratic, AR weight {ENSEMBLE:g}"
_ADAPTER = "linear + adapter"
_POSITIONS = (1, 2, 3, 4, 6, 8, 10, 12)


def _of_joint(measure: Measure, key: str) -> Value:
    return Value("joint", measure, key)


def _compare(
    name: str, text: str, measure: Measure, more: str, less: str, unit: Unit, paper: float | None = None
) -> Claim:
    return Claim(name, text, _of_joint(measure, more), _of_joint(measure, less), unit, paper)


def _mode(mode: str, measure: Measure = MODES, label: str | None = None) -> Line:
    values = (_of_joint(measure, f"{mode}.exact"), _of_joint(measure, f"{mode}.tokens_per_forward"))
    return Line(label or mode, values)


def _tables_5_and_7() -> PaperTable:
    exact, speed = "{}.exact", "{}.tokens_per_forward"
    thresholds = [
        _mode("diffusion", measure, f"diffusion, threshold {threshold}") for threshold, measure in AT_THRESHOLD.items()
    ]
    named = ("ar", "diffusion", "linear", _ADAPTER, "quadratic", _ENSEMBLE)
    return PaperTable(
        "table_7",
        "Tables 5 and 7: accuracy and speed of the modes",
        "The joint model with its drafter adapter, in blocks of 16; diffusion at threshold 0.9 where none is named. "
        f"Linear and quadratic give AR's text, quadratic with AR weight {ENSEMBLE:g} does not.",
        (Column("exact", SHARE), Column("tokens per forward", SPEED)),
        (*map(_mode, named), *thresholds),
        (
            _compare(
                "table_7/ar_over_diffusion",
                "AR answers a little better than diffusion",
                MODES,
                exact.format("ar"),
                exact.format("diffusion"),
                "points",
                0.43,
            ),
            _compare(
                "table_7/ensemble_over_ar",
                "quadratic self-speculation as an ensemble answers better than AR",
                MODES,
                exact.format(_ENSEMBLE),
                exact.format("ar"),
                "points",
                0.43,
            ),
            _compare(
                "table_7/linear_over_diffusion_speed",
                "linear self-speculation with the adapter needs fewer forwards than diffusion: tokens per forward",
                MODES,
                speed.format(_ADAPTER),
                speed.format("diffusion"),
                "percent",
                133.1,
            ),
            _compare(
                "table_7/quadratic_over_linear_speed",
                "quadratic needs fewer forwards than linear with the adapter: tokens per forward",
                MODES,
                speed.format("quadratic"),
                speed.format(_ADAPTER),
                "percent",
                6.5,
            ),
        ),
        _SEEDS,
    )


def _table_6() -> PaperTable:
    lines = [
        Line(
            f"position {position}", tuple(_of_joint(ACCEPTANCE, f"{mode}.{position}") for mode in ("linear", _ADAPTER))
        )
        for position in _POSITIONS
    ]
    return PaperTable(
        "table_6",
        "Table 6: the drafter adapter",
        "Acceptance rates by position of the draft in its block, without and with the adapter.",
        (Column("linear", SHARE), Column(_ADAPTER, SHARE)),
        tuple(lines),
        (
            _compare(
                "table_6/adapter_speed",
                "the adapter makes linear self-speculation faster: tokens per forward",
                MODES,
                f"{_ADAPTER}.tokens_per_forward",
                "linear.tokens_per_forward",
                "percent",
                32.5,
            ),
            _compare(
                "table_6/first_position",
                "it helps at the first position (ours)",
                ACCEPTANCE,
                f"{_ADAPTER}.1",
                "linear.1",
                "points",
            ),
        ),
        _SEEDS,
    )


def _figure_1b() -> PaperTable:
    rows = ("blocks_8", "joint", "blocks_32")
    speed = "tokens_per_forward"
    return of_rows(
        "figure_1b",
        "Figure 1b: block length",
        "Trained and decoded in blocks of 8, 16 (`joint`) and 32. Answers have 12 tokens in the mean.",
        rows,
        (
            ("diffusion", DIFFUSION, "exact", SHARE),
            ("AR", AR, "exact", SHARE),
            ("tokens per forward", DIFFUSION, speed, SPEED),
            ("diffusion loss", LOSSES, "diffusion", LOSS),
        ),
        tuple(
            Claim(
                f"figure_1b/blocks_of_{length}",
                f"blocks of {length} give more tokens per forward than of {length // 2}",
                Value(longer, DIFFUSION, speed),
                Value(shorter, DIFFUSION, speed),
                "percent",
            )
            for length, longer, shorter in ((16, "joint", "blocks_8"), (32, "blocks_32", "joint"))
        ),
        _SEEDS,
    )


def _ours() -> PaperTable:
    claimed = (
        ("stratified_levels", "levels spread evenly over a step lower the diffusion loss", True),
        ("levels_of_blocks", "a noise level for each block lowers the diffusion loss", True),
        ("no_fill", "filling the last block of an answer helps diffusion", False),
        ("blocks_of_conversations", "blocks from the start of the answer help diffusion", False),
    )
    loss, exact = ("diffusion loss", LOSSES, "diffusion", LOSS), ("diffusion", DIFFUSION, "exact", SHARE)

    def claim(row: str, text: str, lowers: bool) -> Claim:
        if lowers:
            return Claim(
                f"ours/{row}", text, Value("joint", LOSSES, "diffusion"), Value(row, LOSSES, "diffusion"), "nats"
            )
        return Claim(f"ours/{row}", text, Value("joint", DIFFUSION, "exact"), Value(row, DIFFUSION, "exact"), "points")

    return of_rows(
        "ours",
        "Ours: what the paper does not have",
        "Each row changes one thing of `joint`. Held-out losses of `no_fill` and `blocks_of_conversations` are those "
        "of other blocks, and are not compared. Not measured here: `data.documents=ignore`, which conversations do not "
        "have; the compact noisy stream against the full one, which changes time and no loss "
        "(`python -m benchmarks.answers`); the variance of the gradient by averaging ([averaging](averaging.md)).",
        ("joint", *(row for row, _, _ in claimed)),
        (exact, ("AR", AR, "exact", SHARE), loss),
        tuple(claim(*one) for one in claimed),
        _SEEDS,
    )


def _table_4() -> PaperTable:
    def real(variant: str) -> tuple[Value, ...]:
        return tuple(_of_joint(BOUND, f"{length}.{variant}.tokens_per_forward") for length in LENGTHS)

    bound = ("oracle", "greedy acceptance", "one per pass")
    names = (*bound, "diffusion, threshold 0.9", "linear", _ADAPTER, "quadratic")
    accepted = Line(
        "oracle, accepted per denoising pass",
        tuple(_of_joint(BOUND, f"{length}.oracle.accepted_length") for length in LENGTHS),
    )
    paper = {4: 2.89, 8: 4.17, 16: 5.68, 32: 7.60}
    return PaperTable(
        "table_4",
        "Table 4 and section 4: the speed of light",
        "Tokens per forward of the oracle bound and of the modes, unweighted means over the kinds of questions. "
        "Answers have 12 tokens in the mean, which bounds the longer blocks; B = 32 is longer than the blocks of the "
        "training. The oracle ends at the text of one token per pass. Greedy acceptance need not, and can be faster "
        "where it does not.",
        tuple(Column(f"B = {length}", SPEED) for length in LENGTHS),
        (accepted, *(Line(name, real(name)) for name in names)),
        (
            *(
                _compare(
                    f"table_4/bound_at_{length}",
                    f"the bound is higher at B = {length} than at {length // 2}: accepted per pass",
                    BOUND,
                    f"{length}.oracle.accepted_length",
                    f"{length // 2}.oracle.accepted_length",
                    "percent",
                    round(100 * (paper[length] / paper[length // 2] - 1), 1),
                )
                for length in LENGTHS[1:]
            ),
            _compare(
                "table_4/bound_over_linear",
                "the bound is above linear self-speculation at B = 32: tokens per forward",
                BOUND,
                "32.oracle.tokens_per_forward",
                f"32.{_ADAPTER}.tokens_per_forward",
                "percent",
                76.5,
            ),
        ),
        _SEEDS,
    )


def _figure_8() -> PaperTable:
    speed = "tokens_per_forward"
    return PaperTable(
        "figure_8",
        "Figure 8: the trained sampler",
        f"The highest tokens per forward among the thresholds at which {SAME_TOKENS:.0%} of the tokens are those of "
        "one token per pass, on questions that the sampler was not trained on; and the AUC of the prediction which "
        "tokens are final.",
        (Column("tokens per forward", SPEED), Column("AUC", LOSS)),
        (
            Line("sampler", (_of_joint(SAMPLER, f"sampler.{speed}"), _of_joint(SAMPLER, "auc"))),
            Line("confidence", (_of_joint(SAMPLER, f"confidence.{speed}"), _of_joint(SAMPLER, "auc_of_confidence"))),
        ),
        (
            _compare(
                "figure_8/sampler_speed",
                "the trained sampler needs fewer forwards than confidence at the same text: tokens per forward",
                SAMPLER,
                f"sampler.{speed}",
                f"confidence.{speed}",
                "percent",
                30.0,
            ),
        ),
        _SEEDS,
    )


TABLES_OF_MODES = (_tables_5_and_7(), _table_6(), _figure_1b(), _ours(), _table_4(), _figure_8())
