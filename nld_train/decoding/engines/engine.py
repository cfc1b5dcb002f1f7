"""What a decoder asks of a model: one forward over a static cache. Everything else is arithmetic on lengths.

The cache has one line of entries for each row at work; entry e of a row holds the keys and values of the token at
position e. The decoder alone knows how many entries of a row count as its text, and says so in every step
(`Step.cached`). An engine keeps no lengths and needs no "crop": entries at and beyond `cached` are seen by nobody,
whatever lies in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One forward over `a` rows and T tokens each. All tensors are on the CPU.

    Every query sees its row's entries `0 .. cached-1`, and of this step's tokens those that `visible_inside` allows.
    Afterwards entry `cached + i` of a row holds the keys and values of its token i (for i < counts); whether they stay
    is decided by `cached` of the next step. Entries below `cached` never change.

    Attributes:
        tokens: int64 `[a, T]`.
        positions: int64 `[a, T]`, for the rotary embedding and the query scale. They may pass the context length by a
            block in the last cycles of quadratic self-speculation.
        counts: int64 `[a]`, real tokens of each row, 1..T; the rest is padding at the end, whose logits nobody reads.
        cached: int64 `[a]`, entries of the cache that are visible.
        causal: bool `[a]`, rows whose tokens see each other causally (True) or in both directions (False).
        pattern: bool `[T, T]` or `[a, T, T]` (query, key), says who sees whom instead of `causal`; None elsewhere.
        outputs: int64 `[a, R]`, the tokens whose logits are wanted; None for all T.
        lines: int64 `[a]`, the lines of the cache that the rows stand on, each once; None for all lines in order.
        adapter: run with the drafter adapter. What such a step leaves in the cache is never kept.
    """

    tokens: Tensor
    positions: Tensor
    counts: Tensor
    cached: Tensor
    causal: Tensor
    pattern: Tensor | None = None
    outputs: Tensor | None = None
    lines: Tensor | None = None
    adapter: bool = False

    def visible_inside(self) -> Tensor:
        """Which tokens of the step see each other: bool `[a, T, T]` (query, key).

        Padding is seen by itself alone, so that no query is left with nothing to see.
        """
        index = torch.arange(self.tokens.shape[1])
        if self.pattern is None:
            allowed = ~self.causal[:, None, None] | (index[None, :] <= index[:, None])
        else:
            allowed = self.pattern.expand(len(self.tokens), -1, -1)
        real = index < self.counts[:, None]
        return (allowed & real[:, None, :]) | torch.eye(len(index), dtype=torch.bool)

    def visible(self, entries: int) -> Tensor:
        """The whole rule over entries `0 .. entries-1`, this step's tokens included: bool `[a, T, entries]`."""
        offset = torch.arange(entries) - self.cached[:, None]
        columns = offset.clamp(0, self.tokens.shape[1] - 1)[:, None, :].expand(-1, self.tokens.shape[1], -1)
        inside = (offset >= 0) & (offset < self.tokens.shape[1])
        return (offset < 0)[:, None, :] | (inside[:, None, :] & self.visible_inside().gather(2, columns))


class Limits(Protocol):
    """What a request is checked against, whether or not the weights have been read.

    Attributes:
        vocabulary_size: V, without padding of a parallel head.
        mask_token_id: the id that stands at masked positions.
        context_length: the most tokens a row may have.
        has_adapter: can it run steps with `adapter=True`.
    """

    vocabulary_size: int
    mask_token_id: int
    context_length: int
    has_adapter: bool


class Engine(Limits, Protocol):
    """A model with a static cache. Under model parallelism every rank runs the decoder and must get the same logits."""

    def begin(self, rows: int, capacity: int) -> None:
        """Makes an empty cache of `rows` lines with `capacity` entries each, in place of any earlier one."""

    def forward(self, step: Step) -> Tensor:
        """Runs a step over lines of the cache: float logits `[a, R, V]` (R = T without `step.outputs`).

        They may lie on any device; what a decoder makes of them lies on the CPU.
        """

    def reread(self, outputs: Tensor) -> Tensor:
        """Logits of other tokens of the last step: int64 `[a, R]`, its tokens, to float `[a, R, V]`.

        Only the head runs. Which logits are worth their price often depends on others of the same forward. Comes right
        after the forward: nothing began and no line was dropped in between.
        """

    def keep(self, rows: Tensor) -> None:
        """Drops all lines but these (int64, in this order): rows have finished, and no others wait for their lines."""
