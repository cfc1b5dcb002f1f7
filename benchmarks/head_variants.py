"""The implementations of head and loss that `benchmarks.head` compares: each computes the mean over supervised rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNKED, WHOLE, EVERYTHING = "chunked", "whole supervised rows", "whole, all 2L rows"


class Inputs:
    """Hidden states of both streams, supervised rows and the head's matrix.

    Args:
        options: the command line.
        device: of the tensors.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(1)
        length, width, vocabulary = options.length, options.width, options.vocabulary

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        self.hidden = drawn(2 * length, width).to(dtype).requires_grad_()
        # So that the logits have about the standard deviation of a trained model's.
        self.weight = (drawn(vocabulary, width) * 2 * width**-0.5).to(dtype).requires_grad_()
        # All clean rows, which come after the noisy ones, and every second noisy row.
        self.index = torch.cat([torch.arange(length, 2 * length), torch.arange(0, length, 2)]).to(device)
        targets = torch.randint(0, vocabulary, (len(self.index),), generator=torch.Generator().manual_seed(1))
        self.targets, self.chunk_rows, self.vocabulary = targets.to(device), options.chunk_rows, vocabulary
        # The gradient buffer of Megatron, which exists in a run whatever computes the gradient.
        self.buffer = torch.zeros(vocabulary, width, device=device)
        setattr(self.weight, "main_grad", self.buffer)  # noqa: B010 (as Megatron does)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Empties the gradient buffer, as each step does."""
        self.buffer.zero_()
        setattr(self.weight, "grad_added_to_main_grad", False)  # noqa: B010 (as Megatron does)

    def gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Those of hidden states and head; of the head from the buffer, if the variant adds it there."""
        hidden, weight = torch.autograd.grad(loss, [self.hidden, self.weight])
        return hidden, self.buffer if getattr(self.weight, "grad_added_to_main_grad", False) else weight

    @property
    def rows(self) -> Tensor:
        """Hidden states of the supervised rows."""
        return self.hidden.index_select(0, self.index)


Variant = Callable[[Inputs], Tensor]


def everything(inputs: Inputs) -> Tensor:
    """Logits of both streams at once, as in public implementations, in float32 for the loss."""
    logits = (inputs.hidden @ inputs.weight.T).float()
    targets = torch.full(logits.shape[:1], -100, device=logits.device)
    return F.cross_entropy(logits, targets.index_copy(0, inputs.index, inputs.targets))


def whole(inputs: Inputs) -> Tensor:
    """Logits of the supervised rows, all at once."""
    return F.cross_entropy((inputs.rows @ inputs.weight.T).float(), inputs.targets)


def chunked(inputs: Inputs, kernel: str = "chunked") -> Tensor:
    """The implementation of a run, with a kernel of `execution.head`."""
    from nld_train.losses.cross_entropy import chunked_nll, vocabulary_parallel_nll
    from nld_train.model.head import added_product, gradients_added

    nll, rows = vocabulary_parallel_nll(inputs.vocabulary, kernel), gradients_added(inputs.rows, inputs.weight)
    head = partial(added_product, weight=inputs.weight)
    return chunked_nll(rows, inputs.targets, head, nll, inputs.chunk_rows).mean()


def in_float64(inputs: Inputs) -> Tensor:
    """The reference in float64."""
    return F.cross_entropy(inputs.rows.double() @ inputs.weight.double().T, inputs.targets)


@torch.no_grad()
def products_alone(inputs: Inputs) -> None:
    """The limit of time: only the three matrix products of head and gradients over the supervised rows."""
    gradient = torch.zeros_like(inputs.weight)
    for rows in inputs.rows.split(inputs.chunk_rows or len(inputs.index)):
        logits = rows @ inputs.weight.T
        rows = logits @ inputs.weight
        gradient.addmm_(logits.T, rows)


def gradient_bytes(inputs: Inputs) -> int:
    """The limit of memory beyond the inputs: the gradients of hidden states and head, which every variant returns."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (inputs.hidden, inputs.weight))


def _liger(reduction: str) -> Variant:
    """Liger's kernel. With a mean it computes the gradient in its forward pass; for single rows it recomputes."""

    def variant(inputs: Inputs) -> Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        loss: Any = liger_fused_linear_cross_entropy(inputs.rows, inputs.weight, inputs.targets, reduction=reduction)
        return loss.float().mean()

    return variant


def _cut(exact: bool) -> Variant:
    """cut-cross-entropy: no logits in memory. Its default leaves small parts out of the gradient."""

    def variant(inputs: Inputs) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        chosen = _without_filter() if exact else {}
        nll: Tensor = linear_cross_entropy(inputs.rows, inputs.weight, inputs.targets, reduction="none", **chosen)
        return nll.float().mean()

    return variant


def _without_filter() -> dict[str, Any]:
    """The argument with which this version of cut-cross-entropy is exact."""
    from cut_cross_entropy import LinearCrossEntropyImpl

    return {"impl": "cce_exact"} if hasattr(LinearCrossEntropyImpl, "CCE_EXACT") else {"filter_eps": None}


# Variants with kernels of other packages, on CUDA and where they are installed.
FOREIGN: dict[str, tuple[str, Variant]] = {
    "chunked, fused": ("megatron", partial(chunked, kernel="fused")),
    "chunked, Transformer Engine": ("transformer_engine", partial(chunked, kernel="transformer_engine")),
    "Liger, mean": ("liger_kernel", _liger("mean")),
    "Liger, single rows": ("liger_kernel", _liger("none")),
    "cut-cross-entropy": ("cut_cross_entropy", _cut(exact=False)),
    "cut-cross-entropy, exact": ("cut_cross_entropy", _cut(exact=True)),
}


def variants(device: torch.device) -> tuple[dict[str, Variant], dict[str, str]]:
    """The variants that can run here, and for each of the others the reason why not."""
    found: dict[str, Variant] = {CHUNKED: chunked, WHOLE: whole, EVERYTHING: everything}
    missing = {}
    for name, (package, variant) in FOREIGN.items():
        if find_spec(package) is None:
            missing[name] = "not installed"
        elif device.type != "cuda":
            missing[name] = "not measured: needs CUDA"
        else:
            found[name] = variant
    return found, missing
