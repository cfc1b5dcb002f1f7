"""The keys and values of committed text on one rank, and the attention of a decode step over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding.engine import Step
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

    def keep(self, rows: Tensor) -> None:
        """Goes on with these lines only, int64 `[n]`, in this order."""
        self.rows = len(rows)
        self.layers = {
            layer: (keys[rows.to(keys.device)], values[rows.to(values.device)])
            for layer, (keys, values) in self.layers.items()
        }


@dataclass(frozen=True)
class CachedContext:
    """A decode step as the layers see it: a `model.streams.LayerContext` over a cache.

    Attributes:
        cosine: `[T, a, 1, head_dim]`.
        sine: `[T, a, 1, head_dim]`.
        query_scale: `[T, a, 1, 1]` or None.
        cache: of this rank.
        lines: int64 `[n]`, the cache lines of the step's real tokens.
        tokens: int64 `[n]`, which token of its row each of them is.
        entries: int64 `[n]`, where its keys and values go.
        visible: bool `[a, 1, T, E]`, who sees which of the first E entries.
    """

    cosine: Tensor
    sine: Tensor
    query_scale: Tensor | None
    cache: KeyValueCache
    lines: Tensor
    tokens: Tensor
    entries: Tensor
    visible: Tensor

    @classmethod
    def of(cls, step: Step, cache: KeyValueCache, rotary: RotaryEmbedding, dtype: torch.dtype) -> CachedContext:
        """The context of a step, on the rotary embedding's device."""
        device = rotary.frequencies.device
        positions = step.positions.T
        cosine, sine = rotary.cosine_and_sine(positions, dtype)
        scale = rotary.query_scale(positions, dtype)
        real = torch.arange(step.tokens.shape[1]) < step.counts[:, None]
        lines, tokens = real.nonzero(as_tuple=True)
        entries = step.cached[lines] + tokens
        return cls(
            cosine=cosine.unsqueeze(2),
            sine=sine.unsqueeze(2),
            query_scale=None if scale is None else scale[..., None, None],
            cache=cache,
            lines=lines.to(device),
            tokens=tokens.to(device),
            entries=entries.to(device),
            visible=step.visible(int(entries.max()) + 1).unsqueeze(1).to(device),
        )

    def attend(self, attend: Attend, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes this step's keys and values and attends to what is visible. See `model.streams.LayerContext`.

        Query heads of a group share their keys, so they are laid out as more rows of one product.
        """
        del attend
        keys, values = self.cache.of_layer(layer, key)
        keys[self.lines, :, self.entries] = key[self.lines, :, self.tokens]
        values[self.lines, :, self.entries] = value[self.lines, :, self.tokens]
        size = self.visible.shape[-1]
        rows, heads, length, width = query.shape
        repeats = heads // key.shape[1]
        folded = query.reshape(rows, key.shape[1], repeats * length, width)
        visible = self.visible.repeat(1, 1, repeats, 1)
        output = F.scaled_dot_product_attention(folded, keys[:, :, :size], values[:, :, :size], attn_mask=visible)
        return output.reshape(rows, heads, length, width)
