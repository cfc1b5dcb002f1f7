"""The common interface of both kinds of checkpoint: rows of named tensors, read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from checkpoint_convert.mapping import Entry, part_name, part_shape, segments
from nld_train.config.schema import ModelConfig
from nld_train.errors import UserError
from nld_train.model.finite import is_finite

# Rows are copied and converted in blocks of about this size.
BLOCK_BYTES = 16 << 20

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Weights(Protocol):
    """Weights of a checkpoint of either kind, under the names of `mapping`."""

    model: ModelConfig

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor, after dequantisation."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, `[stop - start, ...]`; may be a view of a file, which must not be written to."""


def require_finite(rows: Tensor, name: str, where: Path) -> None:
    """Refuses rows of a tensor with a NaN or an infinity; reads them once.

    Args:
        rows: after conversion to the type in which they are written.
        name: of the tensor.
        where: the checkpoint that it comes from.

    Raises:
        UserError: names the tensor.
    """
    if not is_finite(rows):
        raise UserError(f"{where}: tensor {name} contains NaN or infinity; convert weights that are finite")


def row_blocks(start: int, stop: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Splits rows `start` to `stop` into blocks of about `block_bytes`, at least one row each."""
    step = max(1, block_bytes // max(1, row_bytes))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def fill_rows(
    weights: Weights,
    entry: Entry,
    layer: int | None,
    start: int,
    target: Tensor,
    columns: slice = slice(None),
    source: Path | None = None,
) -> None:
    """Fills `target` with rows of a Megatron tensor from Hugging Face parts, converting to its type.

    Args:
        weights: of the Hugging Face parts.
        entry: the Megatron tensor.
        layer: layer of the tensor; None if it is not per layer.
        start: row of the Megatron tensor (of this layer) that is copied to `target[0]`.
        target: `[rows]` or `[rows, columns]`.
        columns: of the last dimension of the parts; ignored for tensors of one dimension.
        source: where the weights come from; None: they are not checked.

    Raises:
        UserError: with a source, if a tensor contains NaN or infinity.
    """
    stop = start + target.shape[0]
    for segment in segments(entry, weights.model):
        first, last = max(start, segment.start), min(stop, segment.start + segment.rows)
        shift = segment.part_start - segment.start
        name = part_name(segment.part, layer)
        row_bytes = 4 * prod(part_shape(segment.part, weights.model)[1:])
        for begin, end in row_blocks(first, last, row_bytes):
            rows = weights.rows(name, begin + shift, end + shift)
            filled = target[begin - start : end - start].copy_(rows[..., columns] if rows.dim() > 1 else rows)
            if source is not None:
                require_finite(filled, name, source)


def entry_dtype(weights: Weights, entry: Entry) -> torch.dtype:
    """The type that represents all parts of a Megatron tensor in all layers without loss."""
    found = {
        weights.dtype(part_name(part, layer))
        for part in entry.parts
        for layer in (range(weights.model.num_hidden_layers) if entry.per_layer else [None])
    }
    return widest(found)


def widest(dtypes: set[torch.dtype]) -> torch.dtype:
    """The smallest type that represents the values of all given types without loss."""
    result = next(iter(dtypes))
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result
