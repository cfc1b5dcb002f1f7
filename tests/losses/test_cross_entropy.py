"""Chunked, vocabulary-parallel cross-entropy against torch's, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close_to_rounding, largest
from torch import Tensor

from nld_train.losses.cross_entropy import chunked_nll, vocabulary_parallel_nll

HIDDEN, VOCABULARY, PADDED = 6, 37, 40


def example(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden rows, targets that include the first and the last id, and the head's matrix with large padding rows."""
    generator = torch.Generator().manual_seed(count)
    rows = (3 * torch.randn(count, HIDDEN, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (count,), generator=generator)
    targets[:1], targets[1:2] = 0, VOCABULARY - 1
    weight = 2 * torch.randn(PADDED, HIDDEN, generator=generator)
    weight[VOCABULARY:] = 50.0
    return rows, targets, weight.to(dtype).requires_grad_()


def expected_nll(rows: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return F.cross_entropy(rows.float() @ weight[:VOCABULARY].float().T, targets, reduction="none")


@pytest.mark.parametrize("count", [1, 2, 15, 16])
@pytest.mark.parametrize("chunk_rows", [0, 1, 7, 16, 1000])
@pytest.mark.usefixtures("groups")
def test_every_chunking_is_torchs_cross_entropy(count: int, chunk_rows: int) -> None:
    rows, targets, weight = example(count)
    nll = chunked_nll(rows, targets, lambda some: some @ weight.T, vocabulary_parallel_nll(VOCABULARY), chunk_rows)
    expected = expected_nll(rows, targets, weight)
    assert nll.shape == (count,)
    assert nll.dtype == torch.float32
    # A logit adds up the hidden size, its scale is that of the logits; a softmax adds up the vocabulary.
    scale = largest(rows.detach() @ weight.detach()[:VOCABULARY].T)
    assert_close_to_rounding(nll, expected, HIDDEN + VOCABULARY, scale=scale)
    row_weights = torch.linspace(-1, 2, count)
    found = torch.autograd.grad((nll * row_weights).sum(), [rows, weight])
    wanted = torch.autograd.grad((expected * row_weights).sum(), [rows, weight])
    for got, want in zip(found, wanted, strict=True):
        assert_close_to_rounding(got, want, 2 * (HIDDEN + VOCABULARY) + count, scale=scale * largest(want))


@pytest.mark.usefixtures("groups")
def test_padding_columns_get_no_probability_and_no_gradient() -> None:
    rows, targets, weight = example(9)
    nll = vocabulary_parallel_nll(VOCABULARY)
    every_id = [nll(rows @ weight.T, torch.full_like(targets, token)) for token in range(VOCABULARY)]
    torch.testing.assert_close(torch.stack(every_id).neg().exp().sum(dim=0), torch.ones(9))
    (gradient,) = torch.autograd.grad(nll(rows @ weight.T, targets).sum(), [weight])
    assert not gradient[VOCABULARY:].any()
    assert gradient[:VOCABULARY].abs().sum() > 0


@pytest.mark.usefixtures("groups")
def test_no_rows_give_no_values_and_a_zero_gradient() -> None:
    rows, targets, weight = example(0)
    for chunk_rows in (0, 7):
        nll = chunked_nll(rows, targets, lambda some: some @ weight.T, vocabulary_parallel_nll(VOCABULARY), chunk_rows)
        assert nll.shape == (0,)
        (gradient,) = torch.autograd.grad(nll.sum(), [weight])
        assert not gradient.any()


@pytest.mark.usefixtures("groups")
def test_bf16_logits_are_scored_in_float32() -> None:
    rows, targets, weight = example(12, torch.bfloat16)
    nll = vocabulary_parallel_nll(VOCABULARY)(rows @ weight.T, targets)
    logits = (rows @ weight.T)[:, :VOCABULARY].float()
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets, reduction="none"))


@pytest.mark.usefixtures("groups")
def test_large_logits_do_not_overflow() -> None:
    logits = torch.zeros(2, PADDED)
    logits[:, 5] = 1e4
    nll = vocabulary_parallel_nll(VOCABULARY)(logits, torch.tensor([5, 6]))
    torch.testing.assert_close(nll, torch.tensor([0.0, 1e4]))


@pytest.mark.usefixtures("groups")
def test_only_a_chunk_of_logits_is_made_at_a_time() -> None:
    rows, targets, weight = example(15)
    sizes = []

    def head(some: Tensor) -> Tensor:
        sizes.append(len(some))
        return some @ weight.T

    nll = chunked_nll(rows, targets, head, vocabulary_parallel_nll(VOCABULARY), 4)
    assert sizes == [4, 4, 4, 3]
    nll.sum().backward()
    assert sorted(sizes) == sorted([4, 4, 4, 3] * 2)  # made again in the backward pass, chunk by chunk
