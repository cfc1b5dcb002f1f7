"""The keys and values of committed text on one rank, and the attention of a decode step over them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding.engines.engine import Step
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import Attend


class KeyValueCache:
    """A static cache: per layer of this rank two tensors `[rows, groups, capacity, head_dim]`, made at first use.

    Args:
        rows: lines of the cache.
        capacity: entries of each line.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of_layer(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; `like` is `[rows, groups, S, head_dim]` and gives groups, width, type, device."""
        if layer not in self.layers:
            shape = (self.rows, like.shape[1], self.capacity, like.shape[3])
            self.layers[layer] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.layers[layer]

    def keep_slots(self, rows: Tensor) -> None:
        """Goes on with these lines only, int64 `[n]`, in this order."""
        self.rows = len(rows)
        self.layers = {
            layer: (keys[rows.to(keys.device)], values[rows.to(values.device)])
            for layer, (keys, values) in self.layers.items()
        }


@dataclass(frozen=True)
class Destinations:
    """Where a step's keys and values go, one member per real token.

    Attributes:
        rows: int64 `[n]`, rows of the step.
        lines: int64 `[n]`, lines of the cache.
        tokens: int64 `[n]`, which token of its row each of them is.
        entries: int64 `[n]`, places in the line.
    """

    rows: Tensor
    lines: Tensor
    tokens: Tensor
    entries: Tensor

    @classmethod
    def of(cls, step: Step, device: torch.device) -> Destinations:
        """The destinations of any step."""
        real = torch.arange(step.tokens.shape[1]) < step.counts[:, None]
        rows, tokens = real.nonzero(as_tuple=True)
        lines = rows if step.slots is None else step.slots[rows]
        entries = step.cached[rows] + tokens
        return cls(rows.to(device), lines.to(device), tokens.to(device), entries.to(device))


@dataclass(frozen=True)
class CachedContext:
    """A decode step as the layers see it: a `model.streams.LayerContext` over a cache.

    Attributes:
        cosine: `[T, a, 1, head_dim]`.
        sine: `[T, a, 1, head_dim]`.
        query_scale: `[T, a, 1, 1]` or None.
        cache: of this rank.
        destinations: of the step's keys and values; None where all lines stand at the same place without padding, and
            they go to the last T of the first `size` entries.
        lines: int64 `[a]`, those of the rows; None for all.
        size: entries that are looked at.
        visible: bool `[a, 1, T, size]`, who sees which of them; None where everyone sees all.
        adapted: `[1, 1, 1]`, 1, where the step drafts with the adapter, else None.
        masks: `visible` as the layers' product wants it, made by the first of them.
    """

    cosine: Tensor
    sine: Tensor
    query_scale: Tensor | None
    cache: KeyValueCache
    destinations: Destinations | None
    lines: Tensor | None
    size: int
    visible: Tensor | None
    adapted: Tensor | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, step: Step, cache: KeyValueCache, rotary: RotaryEmbedding, dtype: torch.dtype) -> CachedContext:
        """The context of a step, on the rotary embedding's device."""
        device = rotary.frequencies.device
        positions = step.positions.T
        cosine, sine = rotary.cosine_and_sine(positions, dtype)
        scale = rotary.query_scale(positions, dtype)
        size = int((step.cached + step.counts).max())
        together = bool((step.cached + step.tokens.shape[1] == size).all() and (step.counts == step.counts[0]).all())
        visible = None if together and _all_seen(step) else _visible(step, size).unsqueeze(1).to(device)
        return cls(
            cosine=cosine.unsqueeze(2),
            sine=sine.unsqueeze(2),
            query_scale=None if scale is None else scale[..., None, None],
            cache=cache,
            destinations=None if together and step.slots is None else Destinations.of(step, device),
            lines=None if step.slots is None else step.slots.to(device),
            size=size,
            visible=visible,
            adapted=cosine.new_ones(1, 1, 1) if step.adapter else None,
        )

    def attend(self, attend: Attend, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes this step's keys and values and attends to what is visible. See `model.streams.LayerContext`.

        Query heads of a group share their keys, so they are laid out as more rows of one product.
        """
        del attend
        keys, values = (
            self._written(lines, new) for lines, new in zip(self.cache.of_layer(layer, key), (key, value), strict=True)
        )
        rows, heads, length, width = query.shape
        repeats = heads // key.shape[1]
        folded = query.reshape(rows, key.shape[1], repeats * length, width)
        output = F.scaled_dot_product_attention(folded, keys, values, attn_mask=self._mask(repeats))
        return output.reshape(rows, heads, length, width)

    def _written(self, lines: Tensor, new: Tensor) -> Tensor:
        """Writes `[a, groups, T, head_dim]` and returns the entries to look at, `[a, groups, size, head_dim]`."""
        if self.destinations is None:
            lines[:, :, self.size - new.shape[2] : self.size] = new
        else:
            places = self.destinations
            lines[places.lines, :, places.entries] = new[places.rows, :, places.tokens]
        seen = lines[:, :, : self.size]
        return seen if self.lines is None else seen[self.lines]

    def _mask(self, repeats: int) -> Tensor | None:
        if self.visible is None:
            return None
        if repeats not in self.masks:
            self.masks[repeats] = self.visible.repeat(1, 1, repeats, 1)
        return self.masks[repeats]


def _all_seen(step: Step) -> bool:
    """Whether every token of rows that stand together sees all that came before it and all of its step."""
    return step.pattern is None and (step.tokens.shape[1] == 1 or not bool(step.causal.any()))


def _visible(step: Step, size: int) -> Tensor:
    """`step.visible(size)`; of single tokens, and of causal steps without padding, in few operations."""
    length = step.tokens.shape[1]
    if length > 1 and (step.pattern is not None or not bool((step.causal & (step.counts == length)).all())):
        return step.visible(size)
    latest = step.cached[:, None] + torch.arange(length)
    return torch.arange(size) <= latest[:, :, None]
