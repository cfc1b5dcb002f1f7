"""The context that all layers share in a forward pass: streams, rotary angles and masks, computed once.

Megatron passes `attention_mask` from the model to every layer, and its activation recomputation saves it among the
inputs, so it must be a tensor. Here it is a handle: a 0-dimensional CPU tensor whose value identifies the
`StreamContext` of the micro-batch. So the forward of one micro-batch and the recomputation of another can interleave,
and the block mask and the angles are computed once per micro-batch instead of once per layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nld_train.masking.context_parallel import ContextShard, shard_tensor
from nld_train.masking.layout import StreamLayout
from nld_train.model.attention.gather import Exchange
from nld_train.model.rotary import RotaryEmbedding

Attend = Callable[[Tensor, Tensor, Tensor, "StreamContext"], Tensor]


class LayerContext(Protocol):
    """The state of a forward pass that a layer's attention reads."""

    @property
    def cosine(self) -> Tensor:
        """`[S, b, 1, head_dim]`, S tokens per row."""

    @property
    def sine(self) -> Tensor:
        """`[S, b, 1, head_dim]`."""

    @property
    def query_scale(self) -> Tensor | None:
        """`[S, b, 1, 1]`, or None where it is 1 everywhere."""

    @property
    def adapted(self) -> Tensor | None:
        """1 where the drafter adapter is on and 0 elsewhere, broadcast to `[S, b, 1]`; None if it is off everywhere."""

    def attend(self, attend: Attend, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of this layer.

        Args:
            attend: the backend for streams without a cache.
            layer: number of the layer in the whole model, from 1.
            query: `[b, heads, S, head_dim]`.
            key: `[b, groups, S, head_dim]`.
            value: `[b, groups, S, head_dim]`.

        Returns:
            `[b, heads, S, head_dim]`.
        """


_contexts: dict[int, LayerContext] = {}
_handles = itertools.count()


@dataclass
class StreamContext:
    """The context of one micro-batch without a KV cache, which its layers share.

    Attributes:
        layout: documents, positions and blocks of its tokens, on the CPU.
        device_layout: the same on the device; None where that is the CPU.
        borders: int32 `[documents + 1]` on the device, from `document_borders`; None where nobody has made them.
        cosine: `[S, b, 1, head_dim]`, S the total length of the streams, or of this rank's shard of them.
        sine: `[S, b, 1, head_dim]`.
        query_scale: `[S, b, 1, 1]`, or None where it is 1 everywhere.
        adapted: `[S, 1, 1]`, 1 where the drafter adapter is on and 0 elsewhere; None if it is off everywhere.
        masks: tensors that an attention backend has computed for this layout, under the backend's name.
        shard: this rank's shard of the streams; None without context parallelism.
        exchange: gathers the keys that its queries see; None without context parallelism.
    """

    layout: StreamLayout
    cosine: Tensor
    sine: Tensor
    query_scale: Tensor | None
    adapted: Tensor | None = None
    masks: dict[str, Any] = field(default_factory=dict)
    shard: ContextShard | None = None
    device_layout: StreamLayout | None = None
    borders: Tensor | None = None
    exchange: Exchange | None = None

    @classmethod
    def of(
        cls,
        layout: StreamLayout,
        rotary: RotaryEmbedding,
        dtype: torch.dtype,
        adapt_noisy: bool = False,
        shard: ContextShard | None = None,
        device_layout: StreamLayout | None = None,
        borders: Tensor | None = None,
    ) -> StreamContext:
        """The context of a layout, with angles in `dtype` on the rotary embedding's device.

        With a `device_layout` nothing is copied to the device, and the host does not wait for it. With `adapt_noisy`
        the drafter adapter is on in the noisy stream; it is always off in the clean one.
        """
        assert shard is None or not adapt_noisy, "no adapter is trained under context parallelism"
        positions = (device_layout or layout).stacked_positions().T  # [S, b]
        if shard is not None:
            positions = positions[shard_tensor(shard, "indices", positions.device)]
        cosine, sine = rotary.cosine_and_sine(positions, dtype)
        scale = rotary.query_scale(positions, dtype, int(layout.stacked_positions().max()))
        return cls(
            layout=layout,
            cosine=cosine.unsqueeze(2),
            sine=sine.unsqueeze(2),
            query_scale=None if scale is None else scale[..., None, None],
            adapted=_noisy_indices(layout, cosine.device).to(cosine.dtype) if adapt_noisy else None,
            shard=shard,
            device_layout=device_layout,
            borders=borders,
            exchange=None if shard is None else Exchange.of(shard, layout, cosine.device),
        )

    @property
    def queries(self) -> Tensor | None:
        """int64 `[n]`, indices in the stacked streams of this rank's queries; None for all, in their order."""
        return None if self.shard is None else self.shard.indices

    @property
    def keys(self) -> Tensor | None:
        """int64 `[n]`, indices in the stacked streams of the keys that this rank has; None for all, in their order."""
        return None if self.exchange is None else self.exchange.keys

    def attend(self, attend: Attend, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention inside and between the streams, the same in every layer. See `LayerContext`."""
        del layer
        if self.exchange is not None:
            key, value = self.exchange(key, value)
        return attend(query, key, value, self)


def _noisy_indices(layout: StreamLayout, device: torch.device) -> Tensor:
    """Bool `[S, 1, 1]`, True in the noisy stream."""
    return (torch.arange(layout.total_length, device=device) < layout.noisy_length)[:, None, None]


def register(context: LayerContext) -> Tensor:
    """Stores the context until `unregister` or `clear`; returns its handle, a 0-dimensional int64 CPU tensor."""
    number = next(_handles)
    _contexts[number] = context
    return torch.tensor(number)


def lookup(handle: Tensor) -> LayerContext:
    """The context of a handle."""
    return _contexts[int(handle)]


def unregister(handle: Tensor) -> None:
    """Drops one context, if it is still there."""
    _contexts.pop(int(handle), None)


def clear() -> None:
    """Drops all contexts; to be called between passes, since a backward pass may recompute with its context."""
    _contexts.clear()
