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
        visible: bool `[a, 1, T, entries]`, the entries of its slot that each token sees; None if it sees all. In a
            fixed step it is what is added to scores, 0 or minus infinity, so that no layer has to convert it.
        signed_sine: the sine, negative in its first half.
        adapted: 1 of shape `[1, 1, 1]` if the step drafts with the adapter, else None.
        masks: `visible` in the shape of the attention product, computed by the first layer; by its repeats.
    """

    cosine: Tensor
    sine: Tensor
    signed_sine: Tensor
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
        first, second = sine.chunk(2, dim=-1)
        scale = rotary.query_scale(positions, dtype, step.entries)
        entries = int((step.cached + step.counts).max()) if step.entries is None else step.entries
        cache.begin_step(step, entries, device)
        if step.entries is not None:
            visible: Tensor | None = _added(step.visible(entries), dtype).unsqueeze(1)
        elif _aligned(step, entries) and _all_seen(step):
            visible = None
        else:
            visible = _visible(step, entries).unsqueeze(1).to(device)
        return cls(
            cosine=cosine.unsqueeze(2),
            sine=sine.unsqueeze(2),
            signed_sine=torch.cat([-first, second], dim=-1).unsqueeze(2),
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
        rows, heads, length, width = query.shape
        folded = query.reshape(rows, key.shape[1], heads // key.shape[1] * length, width)
        return self._product(layer, folded, key, value, length).reshape(rows, heads, length, width)

    def attend_groups(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `attend`, in the layout of the layers' products.

        Args:
            layer: number of the layer, from 1.
            query: `[T, a, groups, repeats, head_dim]`.
            key: `[T, a, groups, head_dim]`.
            value: `[T, a, groups, head_dim]`.

        Returns:
            `[T, a, heads * head_dim]`.
        """
        length, rows, groups, repeats, width = query.shape
        folded = query.permute(1, 2, 3, 0, 4).reshape(rows, groups, repeats * length, width)
        output = self._product(layer, folded, key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), length)
        return output.view(rows, groups, repeats, length, width).permute(3, 0, 1, 2, 4).reshape(length, rows, -1)

    def rotated(self, heads: Tensor) -> Tensor:
        """`model.rotary.rotate` of `[T, a, groups, n, head_dim]`: the sign of its halves is in the sine here."""
        first, second = heads.chunk(2, dim=-1)
        swapped = torch.cat([second, first], dim=-1)
        return heads * self.cosine.unsqueeze(2) + swapped * self.signed_sine.unsqueeze(2)

    def _product(self, layer: int, folded: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
        """Of queries `[a, groups, repeats * T, head_dim]` with the cache, to which `[a, groups, T, head_dim]` go."""
        keys, values = self.cache.update(layer, key, value)
        mask = self._mask(folded.shape[2] // length)
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)

    def _mask(self, repeats: int) -> Tensor | None:
        if self.visible is None:
            return None
        if repeats not in self.masks:
            self.masks[repeats] = self.visible.repeat(1, 1, repeats, 1)
        return self.masks[repeats]


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(visible, visible.new_zeros((), dtype=dtype), float("-inf"))


def _aligned(step: Step, entries: int) -> bool:
    """Whether the tokens of every sequence end at the last of the entries, without padding."""
    ends = step.cached + step.tokens.shape[1]
    return bool((ends == entries).all() and (step.counts == step.counts[0]).all())


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
