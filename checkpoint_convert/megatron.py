"""Weights of a Megatron checkpoint of any layout, memory-mapped.

`.metadata` is a pickle, so such a checkpoint is trusted input. The weights are mapped from the files and not unpickled:
each stored piece is an uncompressed zip, whose CRC-32 is compared when the piece is first used. All other files are
compared with the manifest first.
"""

from __future__ import annotations

import mmap
import zipfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, TensorStorageMetadata

from checkpoint_convert.lora import saved_lora
from checkpoint_convert.mapped_file import map_file
from checkpoint_convert.mapping import Entry, Named, entries, entry_shape, global_shape, segments, tensors
from checkpoint_convert.stored_piece import StoredPiece
from nld_train.config.load import model_from_dict
from nld_train.config.schema import ModelConfig
from nld_train.errors import UserError
from nld_train.outside_json import read_object
from nld_train.training.checkpoint.manifest import MANIFEST, find_damage, read_manifest
from nld_train.training.checkpoint.paths import MODEL_FILE

_MAX_PENDING_CHECKS = 8
# The shards, whose pieces have their own CRC-32: comparing the manifest's checksums would read them twice.
_SHARD = ".distcp"
_PICKLES = (".metadata", "common.pt")


class MegatronWeights:
    """Weights in a Megatron checkpoint (see `Weights`).

    Args:
        directory: a checkpoint of a run, or what `nld-convert import` wrote.
        merge_lora: whether the LoRA of a stage that trains one is added to the weights.

    Raises:
        UserError: it is incomplete or damaged, or its tensors do not match its `model.json`.
    """

    def __init__(self, directory: Path, merge_lora: bool = True) -> None:
        self.directory = directory
        _refuse_damage(directory)
        self.model = read_model(directory)
        self._lora = saved_lora(directory, self.model) if merge_lora else None
        self._sizes, self._chunks, self._dtypes, self._storage = self._read_metadata()
        self._check_shapes()
        self._named = {tensor.name: tensor for tensor in tensors(self.model)}
        self._pieces: dict[Any, StoredPiece] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="crc")
        self._checks: deque[Future[None]] = deque()

    def dtype(self, name: str) -> torch.dtype:
        """Type in which a tensor is stored."""
        return self._dtypes[self._named[name].entry.key]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a Hugging Face tensor: a view if they are contiguous in the Megatron tensor, else a copy."""
        tensor = self._named[name]
        found = []
        for segment in segments(tensor.entry, self.model):
            first, last = max(start, segment.part_start), min(stop, segment.part_start + segment.rows)
            if segment.part is tensor.part and first < last:
                shift = segment.start - segment.part_start
                found.append(self._megatron_rows(tensor, first + shift, last + shift))
        rows = found[0] if len(found) == 1 else torch.cat(found)
        return rows if self._lora is None else self._lora.added(name, start, rows)

    def finish(self) -> None:
        """Waits for the checksum comparisons that still run.

        Raises:
            UserError: a piece that was read is damaged.
        """
        while self._checks:
            self._checks.popleft().result()

    def _megatron_rows(self, tensor: Named, start: int, stop: int) -> Tensor:
        """Rows of a Megatron tensor in a layer, from all stored chunks that contain some of them."""
        entry, layer = tensor.entry, tensor.layer
        lead = 0 if layer is None else 1
        shape = (stop - start, *entry_shape(entry, self.model)[1:])
        target = None
        for chunk in self._chunks[entry.key]:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            if layer is not None and not offsets[0] <= layer < offsets[0] + sizes[0]:
                continue
            first, last = max(start, offsets[lead]), min(stop, offsets[lead] + sizes[lead])
            if first >= last:
                continue
            data = self._chunk(entry, offsets, sizes)
            data = (data if layer is None else data[layer - offsets[0]])[first - offsets[lead] : last - offsets[lead]]
            if tuple(data.shape) == shape:
                return data
            if target is None:
                target = torch.empty(shape, dtype=self._dtypes[entry.key])
            columns = () if data.dim() == 1 else (slice(offsets[-1], offsets[-1] + sizes[-1]),)
            target[(slice(first - start, last - start), *columns)].copy_(data)
        assert target is not None  # the chunks cover the tensor: `_check_shapes`
        return target

    def _chunk(self, entry: Entry, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        piece = self._pieces.get((entry.key, offsets))
        if piece is None:
            piece = self._pieces[entry.key, offsets] = self._locate(entry.key, offsets)
            # Comparisons follow soon after the reading, while the pages are still cached.
            if len(self._checks) == _MAX_PENDING_CHECKS:
                self._checks.popleft().result()
            self._checks.append(self._checker.submit(piece.check))
        return piece.tensor(self._dtypes[entry.key], sizes)

    def _locate(self, key: str, offsets: tuple[int, ...]) -> StoredPiece:
        info = self._storage[key, offsets]
        path = self.directory / info.relative_path
        try:
            if info.relative_path not in self._maps:
                with path.open("rb") as file:
                    self._maps[info.relative_path] = map_file(file)
            return StoredPiece(path, key, self._maps[info.relative_path], info.offset, info.length)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: damaged or truncated, {key} cannot be read ({error})") from error

    def _read_metadata(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.dtype], dict[Any, Any]]:
        try:
            metadata = FileSystemReader(self.directory).read_metadata()
        except FileNotFoundError as error:
            raise UserError(f"{self.directory}/.metadata: missing; the checkpoint is incomplete") from error
        except Exception as error:  # a damaged pickle may raise anything
            raise UserError(f"{self.directory}/.metadata: cannot be read ({error})") from error
        found = {
            key: value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata) and key in {entry.key for entry in entries(self.model)}
        }
        if missing := [entry.key for entry in entries(self.model) if entry.key not in found]:
            raise UserError(f"{self.directory}: missing tensor {', '.join(missing)}")
        storage = {
            (index.fqn, tuple(index.offset)): info
            for index, info in metadata.storage_data.items()
            if index.fqn in found and index.offset is not None
        }
        return (
            {key: tuple(value.size) for key, value in found.items()},
            {key: sorted(value.chunks, key=lambda chunk: tuple(chunk.offsets)) for key, value in found.items()},
            {key: value.properties.dtype for key, value in found.items()},
            storage,
        )

    def _check_shapes(self) -> None:
        for entry in entries(self.model):
            expected, found = global_shape(entry, self.model), self._sizes[entry.key]
            # The vocabulary may be padded to a multiple of the tensor-parallel size of the run that wrote it.
            padded = entry.parts[0].shape[0] == "vocabulary" and found[:1] >= expected[:1] and found[1:] == expected[1:]
            if found != expected and not padded:
                raise UserError(
                    f"{self.directory}: tensor {entry.key} has shape {list(found)}, "
                    f"but model.json requires {list(expected)}"
                )
            stored = sum(torch.Size(chunk.sizes).numel() for chunk in self._chunks[entry.key])
            if stored != torch.Size(found).numel():
                raise UserError(f"{self.directory}: tensor {entry.key} is not stored completely")


def read_model(directory: Path) -> ModelConfig:
    """The model of a checkpoint, from its `model.json`.

    Raises:
        UserError: it cannot be read, or has a key of another version that may change what the model computes.
    """
    path = directory / MODEL_FILE
    settings = read_object(path)
    try:
        return model_from_dict(settings)
    except UserError as error:
        raise UserError(f"{path}: {error} (damaged, or written by another version of nld-train)") from error


def _refuse_damage(directory: Path) -> None:
    """Compares the sizes of all files, and the content of all but the shards, with the manifest.

    Raises:
        UserError: there is no manifest, a file differs from it, or a pickle is not in it.
    """
    if damage := find_damage(directory, size_only=_SHARD):
        raise UserError(f"{directory} is damaged: {damage}")
    listed = read_manifest(directory)
    for name in _PICKLES:
        if (directory / name).exists() and name not in listed:
            raise UserError(f"{directory / name}: is not in {MANIFEST}, and will not be unpickled")
