"""Attention with the whole attention mask: the reference for the other backends. Quadratic in memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nld_train.masking.visibility import dense_mask
from nld_train.model.streams import StreamContext


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Attention of every query to all keys that are visible to it.

    Args:
        query: `[b, heads, S, head_dim]`, or `[b, heads, n, head_dim]` of the indices `context.queries`.
        key: `[b, groups, S, head_dim]`, `groups` dividing `heads`.
        value: `[b, groups, S, head_dim]`.
        context: the micro-batch.

    Returns:
        The shape of `query`.
    """
    if "dense" not in context.masks:
        context.masks["dense"] = dense_mask(context.layout, context.queries).to(query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=context.masks["dense"], enable_gqa=True)
