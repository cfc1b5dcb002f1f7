"""Reading a safetensors file row by row.

The library checks the file's header. Its own tensors are not used: torch maps the file so that it could be written to,
which Linux refuses for a file larger than memory.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nld_train.errors import UserError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
FP8 = "F8_E4M3"
# The library's own limit.
_MOST_HEADER_BYTES = 100_000_000
_TORCH = {**DTYPES, FP8: torch.float8_e4m3fn}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        dtype: as safetensors calls it.
        shape: of the tensor.
        start: its first byte in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int


class SafetensorsFile:
    """An open file.

    Attributes:
        tensors: what it holds, by name.

    Raises:
        UserError: it is missing, truncated, no safetensors file, or has two tensors of one name.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(size, _MOST_HEADER_BYTES)), object_pairs_hook=_without_duplicates)
                with safe_open(path, framework="np"):  # refuses a header that is damaged, or whose tensors overlap
                    self._mapping = map_file(file)
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing, though the index lists it") from error
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error})") from error
        self.tensors = {
            name: Stored(value["dtype"], tuple(value["shape"]), 8 + size + value["data_offsets"][0])
            for name, value in header.items()
            if name != "__metadata__"
        }

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, as a view of the file."""
        stored = self.tensors[name]
        dtype, row = _TORCH[stored.dtype], math.prod(stored.shape[1:])
        offset = stored.start + start * row * dtype.itemsize
        if offset % dtype.itemsize:  # the format promises no alignment
            data = bytearray(self._mapping[offset : offset + (stop - start) * row * dtype.itemsize])
            return torch.frombuffer(data, dtype=dtype).view(stop - start, *stored.shape[1:])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nor is it written to
            flat = torch.frombuffer(self._mapping, dtype=dtype, count=(stop - start) * row, offset=offset)
        return flat.view(stop - start, *stored.shape[1:])

    def number(self, name: str) -> float:
        """The value of a tensor that has one."""
        stored = self.tensors[name]
        data = self._mapping[stored.start : stored.start + _TORCH[stored.dtype].itemsize]
        return float(torch.frombuffer(bytearray(data), dtype=_TORCH[stored.dtype]).float().item())


def map_file(file: BinaryIO) -> mmap.mmap:
    """Maps a whole file for reading, with the system reading ahead as it does for plain reads."""
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapping.madvise(mmap.MADV_SEQUENTIAL)
    return mapping


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the library takes the last of several tensors of one name."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is duplicated")
        found[name] = value
    return found
