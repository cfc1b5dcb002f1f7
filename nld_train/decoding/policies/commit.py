"""Which masked positions of a block a denoising pass commits. A policy is any object with `choose`."""

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
        sizes: int64 `[d]`, tokens of each block; what stands beyond is padding.
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
        """float32 `[d, T]`: of the prediction, in nats."""
        probabilities = self.logits.softmax(-1)
        return torch.special.entr(probabilities).sum(-1).cpu()

    def best(self, score: Tensor, number: Tensor) -> Tensor:
        """bool `[d, T]`: in each row the `number` (int64 `[d]`) masked positions of the highest score `[d, T]`."""
        # Stable: among equals the first position wins, on every machine.
        order = score.masked_fill(~self.masked, float("-inf")).argsort(stable=True, dim=1, descending=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        return (rank < number[:, None]) & self.masked


class CommitPolicy(Protocol):
    """Decides what a denoising pass commits."""

    def choose(self, view: BlockView) -> Tensor:
        """bool `[d, T]`. Positions that are not masked are ignored; a row without any gets its most confident one."""


@dataclass(frozen=True)
class Threshold:
    """Commits what is at least this confident, and always the best position.

    From the same state a lower threshold commits a superset; 0 commits the whole block in one pass.

    Raises:
        ValueError: a threshold outside [0, 1].
    """

    threshold: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold: {self.threshold} is not in [0, 1]")

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return (view.confidence >= self.threshold) | view.best(view.confidence, torch.ones_like(view.passes))


@dataclass(frozen=True)
class FixedNumber:
    """Commits the most confident positions, so many per pass; 1 is one-token-per-pass decoding.

    Raises:
        ValueError: fewer than one.
    """

    number: int = 1

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"number: {self.number} positions per pass is fewer than 1")

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return view.best(view.confidence, torch.full_like(view.passes, self.number))


@dataclass(frozen=True)
class EvenSteps:
    """Spreads a block's masks evenly over so many passes, the most confident first.

    Raises:
        ValueError: fewer than one pass.
    """

    passes: int

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes: {self.passes} denoising passes per block is fewer than 1")

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return _even_share(view, torch.full_like(view.passes, self.passes))


@dataclass(frozen=True)
class TotalSteps:
    """Spreads a text's masks evenly over so many passes: every block takes its share, the first ones what is left over.

    Attributes:
        steps: passes for a whole text, whose blocks have at least one each.
        blocks: how many of a text's blocks have masks.
        block_length: tokens of a block; only the last of a text may be shorter.
        prompt_lengths: tokens of each prompt of the batch.

    Raises:
        ValueError: fewer passes than blocks.
    """

    steps: int
    blocks: int
    block_length: int
    prompt_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.steps < self.blocks:
            raise ValueError(f"steps: {self.steps} is fewer than the {self.blocks} blocks, which take one pass each")

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        prompts = torch.tensor([self.prompt_lengths[sequence] for sequence in view.sequences])
        block = (view.starts - prompts) // self.block_length
        return _even_share(view, self.steps // self.blocks + (block < self.steps % self.blocks).long())


def _even_share(view: BlockView, passes: Tensor) -> Tensor:
    """The most confident positions of each block, so many that it is complete after int64 `[d]` passes."""
    left = (passes - view.passes).clamp(min=1)
    return view.best(view.confidence, (view.masked.sum(1) + left - 1) // left)


@dataclass(frozen=True)
class Entropy:
    """Commits where the prediction's entropy is at most this many nats, and always the lowest.

    Raises:
        ValueError: a negative bound.
    """

    bound: float

    def __post_init__(self) -> None:
        if not self.bound >= 0:
            raise ValueError(f"bound: an entropy of {self.bound} nats is not 0 or more")

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return (view.entropy <= self.bound) | view.best(-view.entropy, torch.ones_like(view.passes))


def chosen_positions(policy: CommitPolicy, view: BlockView) -> Tensor:
    """The policy's choice among masked positions, with the most confident one where it chose none: bool `[d, T]`."""
    chosen = policy.choose(view).cpu() & view.masked
    idle = ~chosen.any(1)
    if bool(idle.any()):
        chosen |= view.best(view.confidence, idle.to(torch.int64))
    return chosen
