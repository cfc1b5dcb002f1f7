"""Bytes of the tensors of the device that are alive, and their peak; without an allocator's rounding."""

from __future__ import annotations

import weakref

from torch import Tensor


class Memory:
    """Counts storages from the first tensor of the device on them to their end."""

    def __init__(self) -> None:
        self.allocated = 0
        self.peak = 0
        self._storages: dict[int, int] = {}  # bytes, by torch's address of the storage

    def hold(self, inner: Tensor) -> None:
        """A tensor of the device is made over this CPU tensor."""
        storage = inner.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = storage.nbytes()
            self.allocated += storage.nbytes()
            self.peak = max(self.peak, self.allocated)
            weakref.finalize(storage, self._free, key).atexit = False

    def reset_peak(self) -> None:
        """As `torch.cuda.reset_peak_memory_stats`."""
        self.peak = self.allocated

    def _free(self, key: int) -> None:
        self.allocated -= self._storages.pop(key)


MEMORY = Memory()
