"""All attention backends against a softmax in plain loops, over random layouts: outputs and gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_cases import CASES, CPU, LAST, Case, additions, attend_of, expectation, gradients, scale_of
from tolerance import assert_close_to_rounding
from torch.nn.attention.flex_attention import create_mask

from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import dense_mask
from nld_train.model.attention import chunked, decomposed
from nld_train.model.attention.chunked import Block, row_groups
from nld_train.model.attention.core import backend
from nld_train.model.attention.flex import block_mask


@pytest.fixture(autouse=True)
def products_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it `chunked` would compute such small cases as `tiled`, which is tested by its own name."""
    monkeypatch.setattr(chunked, "_SHORT_PRODUCT", 0)


# Each shape is compiled for the CPU, which takes seconds. The first four have one and two streams and all head counts.
COMPILED = [
    pytest.param(case, id=str(case), marks=[pytest.mark.long] * (4 <= number < LAST))
    for number, case in enumerate(CASES)
]

# Cases 0 to 6 have every combination that `random_cases` names.
HALF_LONG = [
    pytest.param(case, id=str(case), marks=[pytest.mark.long] * (7 <= number < LAST))
    for number, case in enumerate(CASES)
]


@pytest.mark.parametrize("name", ["dense", "chunked", "decomposed", "tiled"])
@pytest.mark.parametrize("case", HALF_LONG)
def test_outputs_and_gradients_are_the_naive_ones(case: Case, name: str) -> None:
    """In float64 to its rounding.

    In float32 also. Two softmaxes are merged by the difference of their normalisers, which are about 20 here, and
    whatever a score is off, a weight is off by that part of itself: so the scale is a score times an entry.
    """
    expected, expected_gradients = expectation(case)
    for dtype in (torch.float64, torch.float32):
        inputs = case.inputs(dtype=dtype)
        output = attend_of(name)(*inputs, case.context())
        assert output.shape == inputs[0].shape
        for found, wanted in zip((output, *gradients(output, inputs)), (expected, *expected_gradients), strict=True):
            assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted), dtype=dtype)


@pytest.mark.parametrize("name", ["flex", "split"])
@pytest.mark.parametrize("case", COMPILED)
def test_flex_gives_the_naive_outputs(case: Case, name: str) -> None:
    """On a CPU FlexAttention has no backward pass; its mask is compared whole instead, below."""
    inputs = [tensor.detach() for tensor in case.inputs()]
    output = backend(name)(*inputs, case.context())
    wanted = expectation(case)[0]
    assert_close_to_rounding(output, wanted, additions(case), scale=scale_of(wanted))


def draft_layouts() -> list[StreamLayout]:
    """Blocks that begin anywhere, other ones in each row, seen in both directions and causally."""
    documents = torch.tensor([[0] * 11, [0] * 4 + [1] * 7, [0] * 11])
    offsets = np.array([[1], [0], [3]])
    layout = StreamLayout.of(documents, 4, True, offsets)
    return [layout, replace(layout, causal_blocks=True), StreamLayout.of(documents[:1], 11, True)]


@pytest.mark.parametrize("layout", draft_layouts())
def test_the_decomposition_takes_blocks_of_any_length(layout: StreamLayout) -> None:
    """The layouts of a drafter stage, against the whole mask."""
    case = Case(tuple(map(tuple, layout.documents.tolist())), 4, True, 6, 2)
    inputs, context = case.inputs(), replace(case.context(), layout=layout)
    expected, output = (backend(name)(*inputs, context) for name in ("dense", "decomposed"))
    assert_close_to_rounding(output, expected, additions(case), scale=scale_of(expected))
    for found, wanted in zip(gradients(output, inputs), gradients(expected, inputs), strict=True):
        assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted))


@pytest.mark.parametrize("case", [parameter for parameter in COMPILED if parameter.values[0].two_streams])
def test_earlier_blocks_are_the_same_in_one_kernel(case: Case) -> None:
    """What CUDA runs, as far as a CPU can: outputs and normalisers, no gradients."""
    query, key, value = (tensor.detach() for tensor in case.inputs())
    length, context = case.layout().length, case.context()
    noisy, clean = (query[:, :, :length], key[:, :, length:]), value[:, :, length:]
    for found, wanted in zip(
        decomposed.in_one_kernel(*noisy, clean, context),
        decomposed.earlier_blocks(*noisy, clean, context),
        strict=True,
    ):
        assert_close_to_rounding(found, wanted, additions(case), scale=scale_of(wanted))


def test_softmaxes_without_keys_are_merged() -> None:
    """Neither weight nor gradient goes to the part that has none."""
    values = [torch.tensor([[3.0], [5.0]], requires_grad=True) for _ in range(2)]
    normalisers = [torch.tensor([0.2, 0.1], requires_grad=True), torch.tensor([float("-inf"), 0.1])]
    merged = decomposed.merge((values[0], normalisers[0]), (values[1], normalisers[1]))
    assert merged.flatten().tolist() == [3.0, 5.0]
    found = torch.autograd.grad(merged.sum(), [*values, normalisers[0]])
    assert [gradient.flatten().tolist() for gradient in found] == [[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_flex_mask_is_the_rule(case: Case) -> None:
    layout = case.layout()
    total, rows = layout.total_length, len(case.documents)
    mask = create_mask(block_mask(layout, CPU).mask_mod, rows, 1, total, total, device="cpu")
    assert torch.equal(mask, dense_mask(layout))


def test_rows_are_grouped_by_their_documents() -> None:
    layout = StreamLayout.of(torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [5, 5, 5, 6]]), 2, True)
    groups = list(row_groups(layout))
    assert [group.rows for group in groups] == [(0, 2), (1,)]
    assert groups[0].documents == ((0, 3), (3, 4))
    assert groups[0].blocks == (Block(0, 0, 0, 2), Block(0, 2, 2, 3), Block(3, 3, 3, 4))
