"""Attention of two streams in two kernels: the clean half is, as a rule, a causal pass, the noisy one FlexAttention."""

from __future__ import annotations

import torch
from torch import Tensor

from nld_train.model.attention import clean_half, flex
from nld_train.model.streams import StreamContext


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`; not under context parallelism, which the configuration refuses.

    Raises:
        UserError: gradients are required on a CPU.
    """
    assert context.shard is None, "the halves need whole streams"
    flex.refuse_gradients_on_cpu(query, "split")
    length = context.layout.noisy_length
    if not context.layout.two_streams:
        return clean_half.attend(query, key, value, context)
    make_masks(context, query.device)
    noisy = flex.kernel(query.device)(
        query[:, :, :length], key, value, block_mask=context.masks["split"], enable_gqa=True
    )
    clean = clean_half.attend(query[:, :, length:], key[:, :, length:], value[:, :, length:], context)
    return torch.cat([noisy, clean], dim=2)


def make_masks(context: StreamContext, device: torch.device) -> None:
    """Makes the block mask of the noisy half and what the clean one needs, if that has not been done."""
    clean_half.make_masks(context, device)
    layout = context.layout
    if layout.two_streams and "split" not in context.masks:
        queries = torch.arange(layout.noisy_length)
        context.masks["split"] = flex.block_mask(layout, device, queries, on_device=context.device_layout)
