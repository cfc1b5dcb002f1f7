"""Reading tensors out of a memory-mapped file, without a copy."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Sequence
from typing import BinaryIO

import torch
from torch import Tensor


def map_file(file: BinaryIO) -> mmap.mmap:
    """Maps a file for reading, with sequential read-ahead."""
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapping.madvise(mmap.MADV_SEQUENTIAL)
    return mapping


def tensor_view(buffer: mmap.mmap | memoryview, dtype: torch.dtype, shape: Sequence[int], offset: int = 0) -> Tensor:
    """The tensor at an aligned byte offset, as a view of the buffer, which must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
        flat = torch.frombuffer(buffer, dtype=dtype, count=torch.Size(shape).numel(), offset=offset)
    return flat.view(torch.Size(shape))
