"""The collective calls on tensors that this project makes itself; what it has on every rank as objects is torch's.

NCCL refuses a tensor that is not contiguous, and gloo takes it: what passes on CPUs would fail on the first GPU. So it
is refused here, on every backend.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def require_contiguous(tensor: Tensor) -> Tensor:
    """The same tensor; also for what goes to Megatron's collectives, which reduce a copy of one that is not contiguous.

    Only a bug makes it another one: this asserts.
    """
    assert tensor.is_contiguous(), (
        f"a tensor of shape {list(tensor.shape)} and strides {list(tensor.stride())} is not contiguous: "
        "NCCL would refuse it"
    )
    return tensor


def all_reduce(
    tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM, group: dist.ProcessGroup | None = None
) -> None:
    """Reduces a tensor in place over the ranks of a group; None: over all."""
    dist.all_reduce(require_contiguous(tensor), op=op, group=group)


def all_gather(part: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """The tensors, all of one shape, of the ranks of a group, in their order."""
    # Not `empty_like`, which has the strides of the part where that is a permuted one.
    parts = [torch.empty(part.shape, dtype=part.dtype, device=part.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, require_contiguous(part), group=group)
    return parts


def broadcast(tensor: Tensor, source: int, group: dist.ProcessGroup | None = None) -> None:
    """Fills a tensor on every rank of a group with that of the global rank `source`."""
    dist.broadcast(require_contiguous(tensor), source, group=group)


def send(tensor: Tensor, destination: int, group: dist.ProcessGroup | None = None) -> None:
    """Sends a tensor to a global rank."""
    dist.send(require_contiguous(tensor), destination, group)


def receive(tensor: Tensor, source: int, group: dist.ProcessGroup | None = None) -> None:
    """Fills a tensor with what a global rank sends."""
    dist.recv(require_contiguous(tensor), source, group)
