"""What all layers need to know of a micro-batch: its streams, rotary angles and masks, computed once.

Megatron hands `attention_mask` from the model down to every layer, and its activation recomputation saves it among the
inputs, so it has to be a tensor. Here it is a handle: a CPU tensor of no dimensions, whose number finds the
micro-batch's `StreamContext`. A forward of one micro-batch and the recomputation of another can so interleave without
confusion, and the block mask and the angles are made once per micro-batch instead of once per layer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nld_train.masking.layout import StreamLayout
from nld_train.model.rotary import RotaryEmbedding

_contexts: dict[int, StreamContext] = {}
_handles = itertools.count()


@dataclass
class StreamContext:
    """Everything about one micro-batch that its layers share.

    Attributes:
        layout: which tokens stand where, on the CPU.
        cosine: `[S, b, 1, head_dim]`, S the total length of the streams.
        sine: `[S, b, 1, head_dim]`.
        query_scale: `[S, b, 1, 1]`, or None where it is 1 everywhere.
        masks: what an attention backend has computed for this layout, under the backend's name.
    """

    layout: StreamLayout
    cosine: Tensor
    sine: Tensor
    query_scale: Tensor | None
    masks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: StreamLayout, rotary: RotaryEmbedding, dtype: torch.dtype) -> StreamContext:
        """The context of a layout, with angles in `dtype` on the rotary embedding's device."""
        positions = layout.stacked_positions().T  # [S, b]
        cosine, sine = rotary.cosine_and_sine(positions, dtype)
        scale = rotary.query_scale(positions, dtype)
        return cls(
            layout=layout,
            cosine=cosine.unsqueeze(2),
            sine=sine.unsqueeze(2),
            query_scale=None if scale is None else scale[..., None, None],
        )


def register(context: StreamContext) -> Tensor:
    """Keeps the context until `clear` and returns the handle that finds it: an int64 CPU tensor of no dimensions."""
    number = next(_handles)
    _contexts[number] = context
    return torch.tensor(number)


def lookup(handle: Tensor) -> StreamContext:
    """The context behind a handle."""
    return _contexts[int(handle)]


def clear() -> None:
    """Forgets all contexts; called when no forward or backward pass is under way."""
    _contexts.clear()
