"""Tensors of several types in one buffer, so that a micro-batch is pinned once and sent to a GPU in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

# Bytes. A view in another type must begin at a multiple of its element size.
_ALIGNMENT = 16


@dataclass(frozen=True)
class _Field:
    """Type, shape and first byte of a tensor in the buffer."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        return self.begin + prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FlatBuffer:
    """Named tensors that are views of one buffer.

    Attributes:
        buffer: uint8 `[bytes]`.
        fields: where each tensor is in it.
    """

    buffer: Tensor
    fields: dict[str, _Field]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> FlatBuffer:
        """Copies tensors in host memory, of any strides, into a new buffer."""
        fields, end = {}, 0
        for name, tensor in tensors.items():
            fields[name] = _Field(tensor.dtype, tuple(tensor.shape), -(-end // _ALIGNMENT) * _ALIGNMENT)
            end = fields[name].end
        flat = cls(torch.empty(end, dtype=torch.uint8), fields)
        for name, tensor in tensors.items():
            flat[name].copy_(tensor)
        return flat

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name."""
        field = self.fields[name]
        return self.buffer[field.begin : field.end].view(field.dtype).view(field.shape)

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self.fields

    def pin_memory(self) -> FlatBuffer:
        """The same in page-locked memory; torch's data loader calls it."""
        return replace(self, buffer=self.buffer.pin_memory())

    def to(self, device: torch.device) -> FlatBuffer:
        """The same on a device: itself on a CPU, else through one copy that the host does not wait for.

        A copy from pageable memory would make it wait, so a buffer that is not pinned is pinned before. Torch keeps
        pinned memory for reuse, and reuses it only after the copies from it.
        """
        if device.type == "cpu":
            return self
        pinned = self if self.buffer.is_pinned() else self.pin_memory()
        return replace(self, buffer=pinned.buffer.to(device, non_blocking=True))
