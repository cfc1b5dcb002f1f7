"""Writes safetensors shards row by row; the library's writer needs every tensor of a file in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from checkpoint_convert.hugging_face import INDEX, SINGLE
from checkpoint_convert.safetensors_file import DTYPES

SHARD_BYTES = 5 * 10**9
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The format requires data to begin at a multiple of 8; with 64, mapped tensors are aligned.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Output:
    """A tensor to write.

    Attributes:
        name: in the file.
        shape: of the tensor.
        dtype: in the file.
        blocks: yields its rows in order, in `dtype`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[Tensor]]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass
class _Shard:
    outputs: list[Output] = field(default_factory=list)
    bytes: int = 0


def _plan(outputs: Iterable[Output], shard_bytes: int) -> list[_Shard]:
    shards = [_Shard()]
    for output in outputs:
        if shards[-1].outputs and shards[-1].bytes + output.bytes > shard_bytes:
            shards.append(_Shard())
        shards[-1].outputs.append(output)
        shards[-1].bytes += output.bytes
    return shards


def write_shards(
    directory: Path, outputs: list[Output], written: Callable[[int], None], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes tensors into as many files as needed, and the index.

    Args:
        directory: where the files are written.
        outputs: in the order of the files.
        written: called with the bytes of each block.
        shard_bytes: maximum size of a file, unless a single tensor is larger.
    """
    shards = _plan(outputs, shard_bytes)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(directory / name, shard.outputs, written)
    weight_map = {out.name: name for name, shard in zip(names, shards, strict=True) for out in shard.outputs}
    total = {"total_size": sum(shard.bytes for shard in shards)}
    index = {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_shard(path: Path, outputs: list[Output], written: Callable[[int], None]) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(_header(outputs))
        for output in outputs:
            for block in output.blocks():
                data: memoryview = block.contiguous().view(-1).view(torch.uint8).numpy().data
                while data:
                    data = data[file.write(data) :]
                written(block.nbytes)


def _header(outputs: list[Output]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for output in outputs:
        offsets = [start, start := start + output.bytes]
        entries[output.name] = {"dtype": _NAMES[output.dtype], "shape": list(output.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
