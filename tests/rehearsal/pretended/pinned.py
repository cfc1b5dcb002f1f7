"""Pinned memory, and what a copy from the host costs with and without it."""

from __future__ import annotations

import torch
from torch import Tensor

from pretended.ledger import BLOCKING, LEDGER, NON_BLOCKING, PAGEABLE

# By address; kept, so that no other memory gets the address of one that was pinned.
_pinned: dict[int, torch.UntypedStorage] = {}


def register_pinned(tensor: Tensor) -> Tensor:
    """Takes the memory of a CPU tensor as pinned."""
    storage = tensor.untyped_storage()
    if storage.nbytes():
        _pinned[storage.data_ptr()] = storage
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    """Whether a CPU tensor is in pinned memory; a view of one is."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in _pinned


def note_copy_to_device(source: Tensor, what: str, non_blocking: bool, converted: bool) -> None:
    """Notes a copy of a CPU tensor to the device.

    Args:
        source: the CPU tensor.
        what: describes it.
        non_blocking: as asked for.
        converted: the type changes on the way, which the host does first, into pageable memory.
    """
    if source.numel() == 0:
        return
    # The host also makes a pageable copy of what has gaps.
    direct = is_pinned(source) and not converted and _dense(source)
    if not non_blocking:
        LEDGER.note(BLOCKING, what)
    elif direct:
        LEDGER.note(NON_BLOCKING, what)
        LEDGER.begin_copy(source, None)
    else:
        reason = "converted" if converted else "with gaps" if is_pinned(source) else "not pinned"
        LEDGER.note(PAGEABLE, f"{what}: {reason}")


def _dense(tensor: Tensor) -> bool:
    """Whether its elements are next to each other in memory, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
