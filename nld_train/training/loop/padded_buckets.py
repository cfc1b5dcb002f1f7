"""The optimizer's state as Megatron gathers it, where gradient buckets are padded.

Megatron pads each bucket to a multiple of the data-parallel ranks, and gathers the state of the buckets without their
padding. Its `fully_reshardable` format then cuts the weights out of it at offsets that count the padding: all weights
behind the first padded bucket would be saved shifted, and a resumed run would start from them. Nothing is padded where
the sizes of all weights are multiples of 128 and of the number of ranks; with 96 ranks something is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_PARTS = ("param", "exp_avg", "exp_avg_sq")


def keep_padding(optimizer: Any) -> None:
    """Makes an optimizer gather its state with the padding of buckets, as its offsets expect it.

    Args:
        optimizer: Megatron's distributed optimizer.
    """
    gather = optimizer.get_parameter_state_dp_zero

    def gather_padded(*arguments: Any, **named: Any) -> Any:
        state = gather(*arguments, **named)
        if state is not None:
            for index, buffer in enumerate(optimizer.buffers):
                for tensors in state[index].values():
                    tensors.update({part: _padded(tensors[part], buffer.buckets) for part in _PARTS})
        return state

    optimizer.get_parameter_state_dp_zero = gather_padded


def _padded(flat: Tensor, buckets: Sequence[Any]) -> Tensor:
    """What was gathered, each bucket but the last with its padding.

    Args:
        flat: float32, the buckets without padding one after another.
        buckets: Megatron's, of one buffer.
    """
    sizes = [bucket.numel_unpadded for bucket in buckets]
    assert len(flat) == sum(sizes), "the buckets were gathered without padding"
    missing = [bucket.grad_data.numel() - size for bucket, size in zip(buckets, sizes, strict=True)]
    if not any(missing[:-1]):
        return flat
    parts = zip(flat.split(sizes), missing, strict=True)
    return torch.cat([piece for part, count in parts for piece in (part, part.new_zeros(count))])
