"""The clean half of two streams in a product of its own: causal, or with clean tokens that see their whole block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nld_train.model.attention import causal, chunked, flex

if TYPE_CHECKING:
    from nld_train.model.streams import StreamContext


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `causal.attend`, by the layout's visibility of clean tokens."""
    if context.layout.clean_ends is None:
        return causal.attend(query, key, value, context)
    if not query.is_cuda:
        return chunked.clean_blocks(query, key, value, context.layout)
    make_masks(context, query.device)
    return flex.kernel(query.device)(query, key, value, block_mask=context.masks["clean"], enable_gqa=True)


def make_masks(context: StreamContext, device: torch.device) -> None:
    """Finds the documents of a causal stream, or makes the block mask of another one on CUDA, if not done yet."""
    layout = context.layout
    if layout.clean_ends is None:
        causal.make_masks(context, device)
    elif device.type == "cuda" and "clean" not in context.masks:
        clean = torch.arange(layout.noisy_length, layout.total_length)
        context.masks["clean"] = flex.block_mask(layout, device, clean, clean, on_device=context.device_layout)
