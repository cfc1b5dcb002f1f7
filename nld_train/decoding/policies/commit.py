"""The interface of commit policies: from the blocks after a denoising pass to the masked positions that it commits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


def confidence_of(logits: Tensor, sampled: Tensor) -> Tensor:
    """Probability of each sampled token before any temperature: `[d, T]`, from logits `[d, T, V]`."""
    return logits.softmax(-1).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)


def entropy_of(logits: Tensor, sampled: Tensor | None = None) -> Tensor:
    """Entropy of each prediction in nats: `[d, T]`, from logits `[d, T, V]`."""
    del sampled
    return torch.special.entr(logits.softmax(-1)).sum(-1)


# Figures of predictions that a denoising pass can compute on the model's device, under their names in a view. A policy
# names those that it reads in an attribute `figures`; others are computed when they are read, at the cost of one more
# copy to the host.
FIGURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"confidence": confidence_of, "entropy": entropy_of}
DEFAULT_FIGURES = ("confidence",)


@dataclass(frozen=True)
class BlockView:
    """The blocks of some sequences after a denoising pass, the input of a policy.

    Tensors are on the CPU unless stated otherwise.

    Attributes:
        tokens: int64 `[d, T]`, the mask id where masked.
        masked: bool `[d, T]`.
        sampled: int64 `[d, T]`, the token sampled at each masked position: the argmax, or a draw with a temperature.
        read_logits: returns the logits, see `logits`.
        passes: int64 `[d]`, denoising passes made on each block before this one.
        sizes: int64 `[d]`, tokens of each block; the rest is padding.
        sequences: numbers of the sequences among the prompts.
        starts: int64 `[d]`, position of each block's first token.
        forward_uncounted: runs other tokens int64 `[d, T]` in place of the blocks and returns their logits
            `[d, T, V]`; for the oracle bound, and not counted.
    """

    tokens: Tensor
    masked: Tensor
    sampled: Tensor
    read_logits: Callable[[], Tensor]
    passes: Tensor
    sizes: Tensor
    sequences: list[int]
    starts: Tensor
    forward_uncounted: Callable[[Tensor], Tensor]

    @cached_property
    def logits(self) -> Tensor:
        """float32 `[d, T, V]` on the model's device; the mask id has minus infinity."""
        return self.read_logits()

    @cached_property
    def confidence(self) -> Tensor:
        """float32 `[d, T]`: probability of the sampled token before any temperature."""
        return confidence_of(self.logits, self.sampled.to(self.logits.device)).cpu()

    @cached_property
    def entropy(self) -> Tensor:
        """float32 `[d, T]`: entropy of the prediction, in nats."""
        return entropy_of(self.logits).cpu()

    def set_figures(self, figures: Mapping[str, Tensor]) -> None:
        """Sets properties of `FIGURES`, float32 `[d, T]` on the CPU, that the forward has computed already."""
        vars(self).update(figures)

    def best(self, score: Tensor, number: Tensor | int) -> Tensor:
        """The masked positions of the highest score `[d, T]`, `number` (or int64 `[d]`) per block: bool `[d, T]`."""
        # Stable, so that among equal scores the first position is chosen on every machine.
        order = score.masked_fill(~self.masked, float("-inf")).argsort(stable=True, dim=1, descending=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        return (rank < (number if isinstance(number, int) else number[:, None])) & self.masked


class CommitPolicy(Protocol):
    """Decides what a denoising pass commits."""

    def choose(self, view: BlockView) -> Tensor:
        """bool `[d, T]`. Positions that are not masked are ignored; a block without any gets its most confident one."""


def chosen_positions(policy: CommitPolicy, view: BlockView) -> Tensor:
    """The policy's choice among masked positions, with the most confident one where it chose none: bool `[d, T]`."""
    chosen = policy.choose(view).cpu() & view.masked
    empty = ~chosen.any(1)
    if bool(empty.any()):
        chosen |= view.best(view.confidence, empty.to(torch.int64))
    return chosen
