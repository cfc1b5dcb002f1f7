"""Attention with the whole visibility matrix: the reference for the other backends. Quadratic in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nld_train.masking.visibility import dense_mask
from nld_train.model.streams import StreamContext


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Attention of every query to all keys that the rule of visibility allows.

    Args:
        query: `[b, heads, S, head_dim]`, or of the places `context.queries` alone.
        key: `[b, groups, S, head_dim]`, `groups` dividing `heads`.
        value: `[b, groups, S, head_dim]`.
        context: the micro-batch.

    Returns:
        As many `[b, heads, ., head_dim]` as queries.
    """
    if "dense" not in context.masks:
        context.masks["dense"] = dense_mask(context.layout, context.queries).to(query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=context.masks["dense"], enable_gqa=True)
