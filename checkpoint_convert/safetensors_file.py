"""Reading a safetensors file row by row.

The library checks the file's header. Its tensors are not used: torch maps the file copy-on-write, which Linux refuses
for a file larger than memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoint_convert.mapped_file import map_file, tensor_view
from nld_train.errors import UserError
from nld_train.files import open_regular
from nld_train.outside_json import parse_object

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
FP8 = "F8_E4M3"
# The limit of the safetensors library.
_MAX_HEADER_BYTES = 100_000_000
_TORCH = {**DTYPES, FP8: torch.float8_e4m3fn}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        dtype: as safetensors names it.
        shape: of the tensor.
        start: offset of its first byte in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        tensors: its tensors by name.

    Raises:
        UserError: it is missing, truncated, not a safetensors file, or has two tensors of one name.
    """

    def __init__(self, path: Path) -> None:
        try:
            with open_regular(path) as file:
                size = int.from_bytes(file.read(8), "little")
                header = parse_object(file.read(min(size, _MAX_HEADER_BYTES)), "header")
                with safe_open(path, framework="np"):  # refuses a header that is damaged, or whose tensors overlap
                    self._mapping = map_file(file)
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing, though the index lists it") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: not a complete safetensors file ({error})") from error
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
        if offset % dtype.itemsize:  # the format guarantees no alignment
            data = bytearray(self._mapping[offset : offset + (stop - start) * row * dtype.itemsize])
            return torch.frombuffer(data, dtype=dtype).view(stop - start, *stored.shape[1:])
        return tensor_view(self._mapping, dtype, (stop - start, *stored.shape[1:]), offset)

    def number(self, name: str) -> float:
        """The value of a tensor with one element."""
        stored = self.tensors[name]
        data = self._mapping[stored.start : stored.start + _TORCH[stored.dtype].itemsize]
        return float(torch.frombuffer(bytearray(data), dtype=_TORCH[stored.dtype]).float().item())
