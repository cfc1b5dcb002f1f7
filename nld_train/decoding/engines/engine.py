"""The interface between decode algorithms and a model: one forward over a static KV cache.

The KV cache has one slot per active sequence; entry e of a slot holds the keys and values of the token at position e.
Only the decoder tracks how many entries of a slot are committed text, and passes it in every step (`Step.cached`). An
engine stores no lengths and needs no "crop": entries at and beyond `cached` are never visible, whatever they contain.

A step has one of two forms. A trimmed one computes nothing beyond what its values need: its tensors are on the CPU,
where the engine reads them. A fixed one has shapes that do not depend on values: its tensors are on the device of the
engine, the host reads none of them, and `entries` bounds the part of the cache that attention reads. So it can be
captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nld_train.decoding.clean_stream import CleanStream
from nld_train.decoding.engines.cycles import Cycles
from nld_train.model.vision.picture_prompt import ImageTokens
from nld_train.model.vision.pictures import Pictures


@dataclass(frozen=True)
class Step:
    """One forward over `a` sequences of T tokens each. Its tensors are on the CPU, or in a fixed one on the device.

    Every query sees entries `0 .. cached-1` of its slot, and the tokens of this step that `visible_inside` allows.
    Afterwards entry `cached + i` of a slot holds the keys and values of token i (for i < counts); whether they become
    part of the text is decided by `cached` of the next step. Entries below `cached` never change.

    Attributes:
        tokens: int64 `[a, T]`.
        positions: int64 `[a, T]`, for the rotary embedding and the query scale. They may exceed the context length by a
            block in the last cycles of quadratic self-speculation.
        counts: int64 `[a]`, real tokens of each sequence, 1..T; the rest is padding at the end with unused logits.
        cached: int64 `[a]`, entries of the cache that are visible.
        causal: bool `[a]`, sequences whose tokens see each other causally (True) or in both directions (False).
        pattern: bool `[T, T]` or `[a, T, T]` (query, key), the visibility inside the step in place of `causal`; or
            None.
        outputs: int64 `[a, R]`, the tokens whose logits are returned; None for all T.
        slots: int64 `[a]`, the slot of each sequence, each at most once; None for all slots in order.
        adapter: whether the drafter adapter is on. Entries that such a step writes are never committed.
        entries: of a fixed step, how many entries of each slot attention reads, also those that are not visible: at
            least `cached + T` of every sequence. It has no `slots`, and writes all T tokens, padding too. None in a
            trimmed step.
        pictures: those of the `[IMG]` tokens, in the order of sequences and tokens; None where no token is of one, as
            in every fixed step.
    """

    tokens: Tensor
    positions: Tensor
    counts: Tensor
    cached: Tensor
    causal: Tensor
    pattern: Tensor | None = None
    outputs: Tensor | None = None
    slots: Tensor | None = None
    adapter: bool = False
    entries: int | None = None
    pictures: Pictures | None = None

    def visible_inside(self) -> Tensor:
        """Which tokens of the step see each other: bool `[a, T, T]` (query, key).

        Padding sees itself and is invisible to all other tokens, so that no row of the mask is empty.
        """
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        if self.pattern is None:
            allowed = ~self.causal[:, None, None] | (index[None, :] <= index[:, None])
        else:
            allowed = self.pattern.expand(len(self.tokens), -1, -1)
        real = index < self.counts[:, None]
        return (allowed & real[:, None, :]) | torch.eye(len(index), dtype=torch.bool, device=index.device)

    def visible(self, entries: int) -> Tensor:
        """The whole mask over entries `0 .. entries-1`, this step's tokens included: bool `[a, T, entries]`."""
        offset = torch.arange(entries, device=self.cached.device) - self.cached[:, None]
        columns = offset.clamp(0, self.tokens.shape[1] - 1)[:, None, :].expand(-1, self.tokens.shape[1], -1)
        inside = (offset >= 0) & (offset < self.tokens.shape[1])
        return (offset < 0)[:, None, :] | (inside[:, None, :] & self.visible_inside().gather(2, columns))


class Limits(Protocol):
    """The properties of a model against which a request is checked, before or after the weights are read.

    Attributes:
        vocabulary_size: V, without padding of a parallel head.
        mask_token_id: the id of masked tokens.
        context_length: maximum number of tokens of a sequence.
        has_adapter: whether steps with `adapter=True` can run.
        clean_stream: how the model was trained to see a text.
        image_tokens: the tokens of pictures; None for a model that reads text alone.
    """

    vocabulary_size: int
    mask_token_id: int
    context_length: int
    has_adapter: bool
    clean_stream: CleanStream
    image_tokens: ImageTokens | None


class Engine(Limits, Protocol):
    """A model with a static KV cache. Under model parallelism every rank runs the decoder and gets the same logits.

    Attributes:
        cycles: runs what is computed between two readings of the host, and decides the form of steps.
    """

    cycles: Cycles

    def allocate(self, slots: int, capacity: int) -> None:
        """Allocates an empty KV cache with `capacity` entries per slot, in place of any earlier one."""

    def forward(self, step: Step) -> Tensor:
        """Runs a step over slots of the cache: float logits `[a, R, V]` (R = T without `step.outputs`).

        They may be on any device. Those of a fixed step are valid until the next forward.
        """

    def logits_at(self, outputs: Tensor) -> Tensor:
        """Logits of other tokens of the last step, at indices int64 `[a, R]`: float `[a, R, V]`.

        Only the head runs: which logits are needed can depend on other logits of the same forward. Must follow the
        forward directly, without `allocate` or `keep_slots` in between.
        """

    def keep_slots(self, slots: Tensor) -> None:
        """Keeps only these slots (int64, in this order) and frees the others, whose sequences have finished."""
