"""The interface of commit policies: from the blocks after a denoising pass to the masked positions that it commits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockView:
    """The blocks of some sequences after a denoising pass, the input of a policy.

    Tensors are on the CPU unless stated otherwise.

    Attributes:
        tokens: int64 `[d, T]`, the mask id where masked.
        masked: bool `[d, T]`.
        sampled: int64 `[d, T]`, the token sampled at each masked position: the argmax, or a draw with a temperature.
        logits: float32 `[d, T, V]` on the model's device; the mask id has minus infinity.
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
    logits: Tensor
    passes: Tensor
    sizes: Tensor
    sequences: list[int]
    starts: Tensor
    forward_uncounted: Callable[[Tensor], Tensor]

    @cached_property
    def confidence(self) -> Tensor:
        """float32 `[d, T]`: probability of the sampled token before any temperature."""
        of = self.sampled.to(self.logits.device).unsqueeze(-1)
        return self.logits.softmax(-1).gather(-1, of).squeeze(-1).cpu()

    @cached_property
    def entropy(self) -> Tensor:
        """float32 `[d, T]`: entropy of the prediction, in nats."""
        probabilities = self.logits.softmax(-1)
        return torch.special.entr(probabilities).sum(-1).cpu()

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
