"""The ways to head and loss that `benchmarks.head` measures: the mean over the supervised rows, by each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNKED, WHOLE, EVERYTHING = "chunked", "whole supervised rows", "whole, all 2L rows"


class Work:
    """Hidden states of both streams, supervised rows and the head's matrix.

    Args:
        options: the command line.
        device: where.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(1)
        length, width, vocabulary = options.length, options.width, options.vocabulary

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        self.hidden = drawn(2 * length, width).to(dtype).requires_grad_()
        # Logits of a spread as in a trained model.
        self.weight = (drawn(vocabulary, width) * 2 * width**-0.5).to(dtype).requires_grad_()
        # All clean rows, which come behind the noisy ones, and every second noisy one.
        self.index = torch.cat([torch.arange(length, 2 * length), torch.arange(0, length, 2)]).to(device)
        targets = torch.randint(0, vocabulary, (len(self.index),), generator=torch.Generator().manual_seed(1))
        self.targets, self.chunk_rows, self.vocabulary = targets.to(device), options.chunk_rows, vocabulary

    @property
    def rows(self) -> Tensor:
        """Hidden states of the supervised rows."""
        return self.hidden.index_select(0, self.index)


Way = Callable[[Work], Tensor]


def everything(work: Work) -> Tensor:
    """Logits of both streams, as public implementations have them, in float32 for the loss."""
    logits = (work.hidden @ work.weight.T).float()
    targets = torch.full(logits.shape[:1], -100, device=logits.device)
    return F.cross_entropy(logits, targets.index_copy(0, work.index, work.targets))


def whole(work: Work) -> Tensor:
    """Logits of the supervised rows, all at once."""
    return F.cross_entropy((work.rows @ work.weight.T).float(), work.targets)


def chunked(work: Work) -> Tensor:
    """What a run does."""
    from nld_train.losses.cross_entropy import chunked_nll, vocabulary_parallel_nll

    nll = vocabulary_parallel_nll(work.vocabulary)
    return chunked_nll(work.rows, work.targets, lambda some: some @ work.weight.T, nll, work.chunk_rows).mean()


def in_float64(work: Work) -> Tensor:
    """What all are compared with; its gradients arrive at the work's own tensors."""
    return F.cross_entropy(work.rows.double() @ work.weight.double().T, work.targets)


@torch.no_grad()
def products_alone(work: Work) -> None:
    """The limit: the three products of head and gradients over the supervised rows, and nothing between them."""
    gradient = torch.zeros_like(work.weight)
    for rows in work.rows.split(work.chunk_rows or len(work.index)):
        logits = rows @ work.weight.T
        rows = logits @ work.weight
        gradient.addmm_(logits.T, rows)


def gradient_bytes(work: Work) -> int:
    """The limit of memory beyond the inputs: the gradients by hidden states and head, which every way returns."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (work.hidden, work.weight))


def _liger(reduction: str) -> Way:
    """Liger's kernel. For a mean it makes the gradient in its forward pass; for single rows it does all again."""

    def way(work: Work) -> Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        loss: Any = liger_fused_linear_cross_entropy(work.rows, work.weight, work.targets, reduction=reduction)
        return loss.float().mean()

    return way


def _cut(exact: bool) -> Way:
    """cut-cross-entropy: no logits in memory. Its default leaves small parts out of the gradient."""

    def way(work: Work) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        chosen = _without_filter() if exact else {}
        nll: Tensor = linear_cross_entropy(work.rows, work.weight, work.targets, reduction="none", **chosen)
        return nll.float().mean()

    return way


def _without_filter() -> dict[str, Any]:
    """How this version of cut-cross-entropy is told to leave nothing out: newer ones have a name for it."""
    from cut_cross_entropy import LinearCrossEntropyImpl

    return {"impl": "cce_exact"} if hasattr(LinearCrossEntropyImpl, "CCE_EXACT") else {"filter_eps": None}


# Ways of other packages: on CUDA, and where they are installed.
FOREIGN: dict[str, tuple[str, Way]] = {
    "Liger, mean": ("liger_kernel", _liger("mean")),
    "Liger, single rows": ("liger_kernel", _liger("none")),
    "cut-cross-entropy": ("cut_cross_entropy", _cut(exact=False)),
    "cut-cross-entropy, exact": ("cut_cross_entropy", _cut(exact=True)),
}


def ways(device: torch.device) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways that can run here, and why the others cannot."""
    found: dict[str, Way] = {CHUNKED: chunked, WHOLE: whole, EVERYTHING: everything}
    missing = {}
    for name, (package, way) in FOREIGN.items():
        if find_spec(package) is None:
            missing[name] = "not installed"
        elif device.type != "cuda":
            missing[name] = "not measured: needs CUDA"
        else:
            found[name] = way
    return found, missing
