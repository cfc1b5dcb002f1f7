"""All-gather of keys and values over a context-parallel group."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor


def gather_keys_and_values(key: Tensor, value: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the whole streams, in one all-gather.

    The backward pass is a reduce-scatter of the gradients that each rank's queries give them.

    Args:
        key: `[b, groups, S / ranks, head_dim]`, this rank's.
        value: the same.
        order: int64 `[S]`, see `masking.context_parallel.ContextShard.order`; on the device of the keys.

    Returns:
        Two tensors `[b, groups, S, head_dim]`.
    """
    own = torch.stack([key, value]).movedim(3, 0).contiguous()
    group = parallel_state.get_context_parallel_group()
    keys, values = gather_from_sequence_parallel_region(own, group=group)[order].movedim(0, 3)
    return keys, values
