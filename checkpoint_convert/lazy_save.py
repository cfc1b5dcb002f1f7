"""Writes a Megatron checkpoint piece by piece, with torch's distributed checkpoint and tensors filled on demand.

Megatron's save function needs every tensor in memory. Its format is that of torch's distributed checkpoint. So torch's
writer is used here, with a plan that fills one tensor at a time into one buffer. The files can be read by
`megatron.core.dist_checkpointing.load` under any layout.
"""

from __future__ import annotations

import json
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from checkpoint_convert.hashed_files import HashedFiles
from checkpoint_convert.mapping import Entry, entries, entry_layers, entry_shape, global_shape, segments
from checkpoint_convert.weights import Weights, entry_dtype, fill_rows, row_blocks
from nld_train.training.checkpoint.manifest import Checksums

# Large enough for long sequential reads and writes, small enough for one reused buffer per writer.
PIECE_BYTES = 64 << 20
_WRITERS = 2


@dataclass(frozen=True)
class Piece:
    """A box of a Megatron tensor: some rows of one layer, with all columns.

    Attributes:
        entry: the tensor.
        layer: None if the tensor is not per layer.
        start: first row.
        rows: number of rows.
        dtype: type in which it is stored.
        whole: shape of the whole tensor, layers stacked.
    """

    entry: Entry
    layer: int | None
    start: int
    rows: int
    dtype: torch.dtype
    whole: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the box, with the layer axis if there is one."""
        lead = () if self.layer is None else (1,)
        return (*lead, self.rows, *self.whole[len(lead) + 1 :])

    @property
    def offset(self) -> tuple[int, ...]:
        """Offset of the box in the whole tensor."""
        lead = () if self.layer is None else (self.layer,)
        return (*lead, self.start, *[0] * (len(self.whole) - len(lead) - 1))

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def pieces(weights: Weights) -> Iterator[Piece]:
    """All pieces of a model, each inside one key-value group of attention or one half of the gated MLP."""
    model = weights.model
    for entry in entries(model):
        dtype, whole = entry_dtype(weights, entry), global_shape(entry, model)
        row_bytes = math.prod(entry_shape(entry, model)[1:]) * dtype.itemsize
        for layer in entry_layers(entry, model):
            for start, stop in _units(entry, weights):
                for first, last in row_blocks(start, stop, row_bytes, PIECE_BYTES):
                    yield Piece(entry, layer, first, last - first, dtype, whole)


def _units(entry: Entry, weights: Weights) -> Iterator[tuple[int, int]]:
    """Row ranges that no tensor-parallel size divides."""
    found = segments(entry, weights.model)
    step = len(entry.parts) if entry.by_group else 1
    for index in range(0, len(found), step):
        last = found[index + step - 1]
        yield found[index].start, last.start + last.rows


def save(weights: Weights, directory: Path, written: Callable[[int], None], source: Path) -> Checksums:
    """Writes the weights as a Megatron checkpoint.

    Args:
        weights: of either kind.
        directory: exists and is empty.
        written: called with the bytes of each piece.
        source: where the weights come from, for messages.

    Returns:
        Sizes and checksums of the files with weights, for the manifest.

    Raises:
        OSError: a file cannot be written, in any of the threads.
        UserError: a tensor contains NaN or infinity.
    """
    planner = _LazyPlanner(weights, list(pieces(weights)), written, source)
    writer = FileSystemWriter(directory, thread_count=_WRITERS)
    writer.fs = files = HashedFiles()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is intended
        try:
            checkpoint.save({}, storage_writer=writer, planner=planner, no_dist=True)
        except CheckpointException as error:  # wraps errors raised outside of an open file
            files.fail(next(iter(error.failures.values()))[0])
    if files.failure is not None:
        raise files.failure
    # Megatron's files besides the tensors: state common to all ranks (none here), and the format's name and version.
    torch.save({}, directory / "common.pt")
    (directory / "metadata.json").write_text(
        json.dumps(
            {
                "sharded_backend": "torch_dist",
                "sharded_backend_version": 1,
                "common_backend": "torch",
                "common_backend_version": 1,
            }
        )
    )
    return {name: entry for name, entry in files.checksums.items() if (directory / name).is_file()}


class _LazyPlanner(DefaultSavePlanner):
    """Plans the pieces, and fills each one when the writer resolves it."""

    def __init__(
        self, weights: Weights, planned: Sequence[Piece], written: Callable[[int], None], source: Path
    ) -> None:
        super().__init__(flatten_state_dict=False)
        self.weights, self.source = weights, source
        self.pieces = {MetadataIndex(piece.entry.key, piece.offset): piece for piece in planned}
        self.buffer_bytes = max(piece.bytes for piece in planned)
        self.written = written
        # The writer keeps a reference to the last tensor of every name until a file is complete, but has written it
        # before it resolves the next one. So all tensors of a thread can share one buffer.
        self.buffers = threading.local()

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(index, piece) for index, piece in self.pieces.items()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        piece = self.pieces[write_item.index]
        if not hasattr(self.buffers, "buffer"):
            self.buffers.buffer = bytearray(self.buffer_bytes)
        data = memoryview(self.buffers.buffer)[: piece.bytes]
        tensor = torch.frombuffer(data, dtype=piece.dtype).view(piece.shape)
        target = tensor if piece.layer is None else tensor[0]
        fill_rows(self.weights, piece.entry, piece.layer, piece.start, target, source=self.source)
        self.written(piece.bytes)
        return tensor


def _write_item(index: MetadataIndex, piece: Piece) -> WriteItem:
    properties: Any = TensorProperties(dtype=piece.dtype)
    chunk = ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape))
    return WriteItem(
        index, WriteItemType.SHARD, tensor_data=TensorWriteData(chunk, properties, torch.Size(piece.whole))
    )
