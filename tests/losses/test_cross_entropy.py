"""Chunked, vocabulary-parallel cross-entropy against torch's, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_close_to_rounding, largest
from torch import Tensor

from nld_train.errors import UserError
from nld_train.losses.cross_entropy import chunked_nll, resolve_head, vocabulary_parallel_nll

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


@pytest.fixture
def plain_fusions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that Megatron's fused cross-entropy compiles, uncompiled: compiling takes seconds."""
    from megatron.core.fusions import fused_cross_entropy

    for name, function in vars(fused_cross_entropy).copy().items():
        if hasattr(function, "_torchdynamo_orig_callable"):
            monkeypatch.setattr(fused_cross_entropy, name, function._torchdynamo_orig_callable)


@pytest.mark.usefixtures("groups", "plain_fusions")
def test_the_fused_kernel_is_the_plain_one() -> None:
    """Losses and gradients of bf16 logits; gradients are rounded to bf16 by both."""
    found = []
    for kernel in ("chunked", "fused"):
        rows, targets, weight = example(20, torch.bfloat16)
        scored = vocabulary_parallel_nll(VOCABULARY, kernel)
        nll = chunked_nll(rows, targets, lambda some, weight=weight: some @ weight.T, scored, 7)
        (nll * torch.linspace(-1, 2, 20)).sum().backward()
        assert nll.dtype == torch.float32
        found.append((nll.detach(), rows.grad, weight.grad))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain)


@pytest.mark.long  # compiles for the CPU
@pytest.mark.usefixtures("groups")
def test_the_fused_kernel_takes_any_number_of_rows() -> None:
    """Their number differs from micro-batch to micro-batch."""
    for count in (20, 0, 1, 13, 14, 15, 16, 17, 18, 19, 21):
        rows, targets, weight = example(count, torch.bfloat16)
        found, wanted = (
            vocabulary_parallel_nll(VOCABULARY, kernel)(rows @ weight.T, targets) for kernel in ("fused", "chunked")
        )
        torch.testing.assert_close(found, wanted)


@pytest.mark.usefixtures("groups")
def test_transformer_engines_kernel_gets_rows_without_a_host_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Megatron's wrapper, whose signature this is."""
    import megatron.core.extensions.transformer_engine as extension

    def wrapper(logits: Tensor, labels: Tensor, tp_group: object, is_cg_capturable: bool = False) -> Tensor:
        assert is_cg_capturable
        assert tp_group.size() == 1
        assert logits.shape == (9, 1, PADDED)
        return F.cross_entropy(logits.squeeze(1).float(), labels.squeeze(1), reduction="none").unsqueeze(1)

    monkeypatch.setattr(extension, "te_parallel_cross_entropy", wrapper)
    rows, targets, weight = example(9)
    nll = vocabulary_parallel_nll(VOCABULARY, "transformer_engine")(rows @ weight.T, targets)
    torch.testing.assert_close(nll, expected_nll(rows, targets, weight))


@pytest.mark.parametrize(
    ("head", "message"),
    [("fused", "fused has gradients in bf16 only"), ("transformer_engine", "transformer_engine needs a CUDA device")],
)
def test_kernels_are_refused_where_they_do_not_run(head: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^execution.head: {message}"):
        resolve_head(head, torch.device("cpu"), torch.float32)
    assert resolve_head("auto", torch.device("cpu"), torch.float32) == "chunked"
