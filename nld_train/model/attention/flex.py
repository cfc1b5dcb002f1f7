"""Attention through FlexAttention: one block mask per micro-batch, shared by all layers, GQA without copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from nld_train.errors import UserError
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import Coordinates, coordinates, visible
from nld_train.model.streams import StreamContext


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`. Needs CUDA, but for a forward pass without gradients.

    Raises:
        UserError: gradients are asked for on a CPU.
    """
    if not query.is_cuda and query.requires_grad:
        raise UserError("execution.attention: flex has no backward pass on a CPU; use chunked or dense")
    if "flex" not in context.masks:
        context.masks["flex"] = block_mask(context.layout, query.device, context.queries)
    kernel: Any = _compiled() if query.is_cuda else flex_attention
    return kernel(query, key, value, block_mask=context.masks["flex"], enable_gqa=True)


def block_mask(layout: StreamLayout, device: torch.device, queries: Tensor | None = None) -> BlockMask:
    """The rule of visibility as a block-sparse mask; rows that are all alike share one.

    Args:
        layout: of one micro-batch.
        device: where attention runs.
        queries: int `[n]`, the places that ask, or None for all.
    """
    # Blocks of equal documents may begin elsewhere.
    alike = all(bool((field == field[:1]).all()) for field in (layout.documents, layout.blocks))
    rows = 1 if alike else len(layout.documents)
    tokens = Coordinates(*(field[:rows].to(device) for field in coordinates(layout)))
    asking = tokens if queries is None else tokens.at(queries.to(device))

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = batch * 0 if alike else batch
        query_at = Coordinates(*(field[row, query] for field in asking))
        key_at = Coordinates(*(field[row, key] for field in tokens))
        return visible(query_at, key_at, layout.causal_blocks)

    total = layout.total_length
    count = total if queries is None else len(queries)
    return create_block_mask(allowed, None if alike else rows, None, count, total, device=str(device))


@cache
def _compiled() -> Callable[..., Any]:
    """The fused kernel. It exists only compiled; lengths are fixed in a run, so shapes are static."""
    return torch.compile(flex_attention, dynamic=False)
