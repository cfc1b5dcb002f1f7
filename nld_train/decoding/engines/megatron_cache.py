"""The attention of a decode step of Megatron's layers over the KV cache of one rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding.engines.engine import Step
from nld_train.decoding.engines.kv_cache import KeyValueCache
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import Attend


@dataclass(frozen=True)
class CachedContext:
    """A decode step for the layers: a `model.streams.LayerContext` over a KV cache.

    Attributes:
        cosine: `[T, a, 1, head_dim]`.
        sine: `[T, a, 1, head_dim]`.
        query_scale: `[T, a, 1, 1]` or None.
        cache: of this rank.
        visible: bool `[a, 1, T, entries]`, the entries of its slot that each token sees; None if it sees all.
        adapted: 1 of shape `[1, 1, 1]` if the step drafts with the adapter, else None.
        masks: `visible` in the shape of the attention product, computed by the first layer; by its repeats.
    """

    cosine: Tensor
    sine: Tensor
    query_scale: Tensor | None
    cache: KeyValueCache
    visible: Tensor | None
    adapted: Tensor | None = None
    masks: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, step: Step, cache: KeyValueCache, rotary: RotaryEmbedding, dtype: torch.dtype) -> CachedContext:
        """The context of a step, on the rotary embedding's device; prepares the cache for its keys and values."""
        device = rotary.frequencies.device
        positions = step.positions.T
        cosine, sine = rotary.cosine_and_sine(positions, dtype)
        scale = rotary.query_scale(positions, dtype)
        entries = int((step.cached + step.counts).max())
        cache.begin_step(step, entries, device)
        aligned = bool((step.cached + step.tokens.shape[1] == entries).all() and (step.counts == step.counts[0]).all())
        visible = None if aligned and _all_seen(step) else _visible(step, entries).unsqueeze(1).to(device)
        return cls(
            cosine=cosine.unsqueeze(2),
            sine=sine.unsqueeze(2),
            query_scale=None if scale is None else scale[..., None, None],
            cache=cache,
            visible=visible,
            adapted=cosine.new_ones(1, 1, 1) if step.adapter else None,
        )

    def attend(self, attend: Attend, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes this step's keys and values and attends to what is visible. See `model.streams.LayerContext`.

        Query heads of a group share their keys, so they are folded into the rows of one product.
        """
        del attend
        keys, values = self.cache.update(layer, key, value)
        rows, heads, length, width = query.shape
        repeats = heads // key.shape[1]
        folded = query.reshape(rows, key.shape[1], repeats * length, width)
        output = F.scaled_dot_product_attention(folded, keys, values, attn_mask=self._mask(repeats))
        return output.reshape(rows, heads, length, width)

    def _mask(self, repeats: int) -> Tensor | None:
        if self.visible is None:
            return None
        if repeats not in self.masks:
            self.masks[repeats] = self.visible.repeat(1, 1, repeats, 1)
        return self.masks[repeats]


def _all_seen(step: Step) -> bool:
    """Whether every token of aligned sequences sees all entries of its slot and all tokens of its step."""
    return step.pattern is None and (step.tokens.shape[1] == 1 or not bool(step.causal.any()))


def _visible(step: Step, entries: int) -> Tensor:
    """`step.visible(entries)`, in fewer operations for single tokens and for causal steps without padding."""
    length = step.tokens.shape[1]
    if length > 1 and (step.pattern is not None or not bool((step.causal & (step.counts == length)).all())):
        return step.visible(entries)
    latest = step.cached[:, None] + torch.arange(length)
    return torch.arange(entries) <= latest[:, :, None]
