"""Every layout computes the same steps as one process, and the first one as the naive computation does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from parity_cases import (
    AVERAGINGS,
    CONTEXT,
    CP2,
    CP2_DP2,
    CP2_PP2,
    CP2_TP2_SEQUENCE,
    CP4,
    DP2,
    MODEL,
    PP2,
    PP2_VIRTUAL,
    SINGLE,
    STEPS,
    TP2,
    TP2_DP2,
    TP2_PP2,
    TP2_SEQUENCE,
    Case,
    layout_cases,
    pairs_of,
    pairwise,
)
from process_groups import Outcomes
from tolerance import gradient_additions, rounding_bound

# Relative, of losses and gradients after the steps: what their additions over all of these explain.
TOLERANCE = rounding_bound(1.0, STEPS * gradient_additions(MODEL, keys=2 * 24, rows=8 * 24))
MEASURES = ("loss", "ar_loss", "diffusion_loss", "grad_norm")

# Fine-tuning without a noisy stream, and with the blocks of the public code.
CONTROL = ("stages.sft.alpha=0", "stages.sft.noisy_length=auto")
# Blocks that lie whole on a context-parallel process, so that only clean keys are exchanged.
WHOLE_BLOCKS = ("diffusion.block_size=3",)
DIFFUSION_ALONE = ("stages.joint.ar_weight=0",)
# Clean tokens that see their whole block, which needs that too.
WHOLE_CLEAN_BLOCKS = {stage: ("diffusion.clean=block", f"stages.{stage}.ar_weight=0") for stage in ("joint", "sft")}
BLOCKS_OF_DOCUMENTS = ("diffusion.blocks=document", "diffusion.fill=false")
CP2_WHOLE_BLOCKS = Case(CP2, "joint", documents="ignore", settings=WHOLE_BLOCKS)

QUICK = [
    *layout_cases(["global"], [2]),
    *(Case(layout, "joint", averaging) for layout in (SINGLE, DP2, TP2_PP2) for averaging in AVERAGINGS[1:]),
    *(Case(layout, "joint", micro_size=size) for layout in (SINGLE, DP2, PP2_VIRTUAL) for size in (1, 4)),
    *(Case(SINGLE, "ar", averaging) for averaging in AVERAGINGS),
    *(Case(CP2, "joint", averaging) for averaging in AVERAGINGS[1:]),
    *(Case(CP2, "joint", micro_size=size) for size in (1, 4)),
    *(Case(layout, stage, documents="ignore") for layout in (CP2, CP2_DP2) for stage in ("ar", "joint")),
    *(Case(layout, "joint", documents="ignore", settings=WHOLE_BLOCKS) for layout in (CP2, CP4, CP2_TP2_SEQUENCE)),
    *(Case(layout, "sft", settings=CONTROL) for layout in (SINGLE, PP2, TP2_DP2, CP2)),
    *(Case(layout, "sft", settings=BLOCKS_OF_DOCUMENTS) for layout in (SINGLE, DP2, CP2_PP2, TP2_SEQUENCE)),
    *(Case(SINGLE, "sft", averaging) for averaging in AVERAGINGS),
    *(Case(layout, "joint", settings=DIFFUSION_ALONE) for layout in (PP2, TP2_SEQUENCE)),
    *(
        Case(layout, stage, settings=settings)
        for stage, settings in WHOLE_CLEAN_BLOCKS.items()
        for layout in (SINGLE, CP2)
    ),
]
EXECUTIONS = [
    *(
        Case(layout, "joint", extra=(f"execution.{override}",))
        for layout in (SINGLE, TP2_SEQUENCE, CP2)
        for override in ("recompute=full", "recompute=selective", "head_chunk_rows=7", "attention=dense")
    ),
    Case(SINGLE, "joint", extra=("execution.recompute=full", "execution.recompute_layers=2")),
    Case(SINGLE, "ar", extra=("execution.attention=dense",)),
    Case(PP2_VIRTUAL, "joint", extra=("execution.recompute=full",)),
    Case(DP2, "joint", extra=("parallel.overlap_grad_reduce=true",)),
    Case(DP2, "joint", extra=("parallel.overlap_grad_reduce=true", "execution.head_chunk_rows=7")),
    Case(DP2, "joint", extra=("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")),
    Case(TP2, "joint", extra=("execution.head_chunk_rows=7",)),
    Case(CP2, "joint", extra=("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")),
]
SHORT = list(dict.fromkeys([*QUICK, *EXECUTIONS]))
SINGLES = [
    Case(SINGLE, stage, averaging, size) for stage in ("ar", "joint") for averaging in AVERAGINGS for size in (1, 2, 4)
]
# Of the whole matrix of the layouts, AR steps are left out under the averagings that are `global` where nothing is
# masked. Of what is left every two of layout, stage, averaging and micro-batch meet in a case. More than two need not:
# the averaging gives each row its weight before anything is cut, and all averagings meet all micro-batches on one
# process; a layout cuts rows and model, whatever the weights are.
MATRIX = [
    case
    for case in layout_cases(AVERAGINGS, (1, 2, 4))
    if case.stage != "ar" or case.averaging in ("global", "sequence")
]
REST = [case for case in [*SINGLES, *pairwise(MATRIX, SHORT)] if case not in SHORT]


# FlexAttention has no backward pass on a CPU: forward passes alone compare it with the others. Each of its calls takes
# a quarter of a second there, for however many samples.
VALIDATIONS = [
    *(replace(case, kind="validation") for case in layout_cases(["global"], [2])),
    *(Case(SINGLE, stage, extra=("execution.attention=dense",), kind="validation") for stage in ("ar", "joint")),
    *(
        Case(layout, stage, micro_size=8, extra=("execution.attention=flex",), kind="validation")
        for layout in (SINGLE, CP2)
        for stage in ("ar", "joint")
    ),
    replace(CP2_WHOLE_BLOCKS, micro_size=8, extra=("execution.attention=flex",), kind="validation"),
]
GRADIENTS = [
    replace(CP2_WHOLE_BLOCKS, kind="gradients"),
    *(
        Case(layout, stage, documents=documents, kind="gradients")
        for layout in CONTEXT
        for stage, documents in (*product(("ar", "joint"), ("isolate", "ignore")), ("sft", "isolate"))
    ),
]
DAILY_VALIDATIONS = [
    *(Case(layout, "joint", kind="validation") for layout in (PP2_VIRTUAL, DP2, TP2_SEQUENCE, CP2)),
    Case(TP2, "ar", kind="validation"),
    *(case for case in VALIDATIONS if case.layout is CP2 and case.extra),
    Case(CP2, "sft", kind="validation"),
]
# Of two processes: every layout, both stages, both kinds of documents, and all averagings where each process counts
# its own samples.
DAILY = [
    *(Case(layout, "joint") for layout in (PP2, TP2_SEQUENCE)),
    *(Case(layout, "ar") for layout in (TP2, PP2_VIRTUAL, DP2, CP2)),
    Case(PP2_VIRTUAL, "joint", micro_size=4),
    *(Case(DP2, "joint", averaging) for averaging in AVERAGINGS),
    *(Case(CP2, "joint", averaging) for averaging in ("global", "sequence")),
    Case(CP2, "joint", documents="ignore"),
    CP2_WHOLE_BLOCKS,
    *(Case(layout, "sft") for layout in (PP2_VIRTUAL, DP2, CP2)),
    Case(TP2_SEQUENCE, "sft", settings=BLOCKS_OF_DOCUMENTS),
    Case(PP2, "sft", settings=CONTROL),
]
DAILY_GRADIENTS = [case for case in GRADIENTS if case.layout is CP2 and case.stage != "ar"]


def is_long(case: Case) -> bool:
    """Four processes on two cores are slow, and two take a second for each case."""
    if case.layout.world == 1:
        return case in REST
    return case not in (*DAILY, *DAILY_VALIDATIONS, *DAILY_GRADIENTS)


def parameters(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.long] * is_long(case)) for case in cases]


CASES = parameters([*SHORT, *REST])


def test_every_two_choices_meet() -> None:
    assert set(DAILY) <= set(SHORT)
    assert set(DAILY_VALIDATIONS) <= set(VALIDATIONS)
    met = set().union(*map(pairs_of, [*SHORT, *REST]))
    assert set().union(*map(pairs_of, MATRIX)) <= met


# A group of processes runs all its selected cases at the first question, whichever test asks it.
pytestmark = pytest.mark.timeout(3000)


def assert_equal(found: dict[str, Any], expected: dict[str, Any], names: Iterable[str] = MEASURES) -> None:
    differences = {}
    for name in names:
        if expected[name] is None:
            assert found[name] is None
        else:
            differences[name] = abs(found[name] - expected[name]) / abs(expected[name])
    assert max(differences.values()) < TOLERANCE, (differences, found, expected)


@pytest.mark.parametrize("case", CASES)
def test_every_step_equals_that_of_one_process(case: Case, outcomes: Outcomes) -> None:
    found, expected = outcomes.records(case), outcomes.records(case.single())
    assert len(found) == len(expected) == STEPS
    for step in range(STEPS):
        assert_equal(found[step], expected[step])


@pytest.mark.parametrize("case", CASES)
def test_the_first_step_equals_the_naive_computation(case: Case, outcomes: Outcomes) -> None:
    assert_equal(outcomes.records(case)[0], outcomes.records(case.by_hand())[0])


@pytest.mark.parametrize("case", parameters(VALIDATIONS))
def test_validation_equals_that_of_one_process(case: Case, outcomes: Outcomes) -> None:
    (found,), (expected,) = outcomes.records(case), outcomes.records(case.single())
    assert found.keys() == expected.keys()
    assert len(expected) == (1 if case.stage == "ar" else 5)
    assert_equal(found, expected, expected)


@pytest.mark.parametrize("case", parameters(GRADIENTS))
def test_every_weights_gradient_equals_that_of_one_process(case: Case, outcomes: Outcomes) -> None:
    (found,), (expected,) = outcomes.records(case), outcomes.records(case.single())
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        wanted = torch.tensor(values)
        difference = (torch.tensor(found[name]) - wanted).norm() / wanted.norm()
        assert difference < TOLERANCE, (name, difference)
