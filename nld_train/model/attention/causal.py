"""The clean stream: causal attention inside each document, through a fused kernel."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.masking.layout import document_borders
from nld_train.model.streams import StreamContext


@dataclass(frozen=True)
class Documents:
    """The documents of a micro-batch, whose rows are concatenated.

    Attributes:
        borders: from 0 to b * L, the first index of each document, and the end.
        cumulative: the same as int32 on the device.
        longest: tokens of the longest document.
    """

    borders: tuple[int, ...]
    cumulative: Tensor
    longest: int

    @classmethod
    def of(cls, documents: Tensor, device: torch.device, cumulative: Tensor | None = None) -> Documents:
        """From int `[b, L]`; adjacent equal values are one document. `cumulative` where it is on the device already."""
        found = document_borders(documents)
        borders = tuple(found.tolist())
        return cls(
            borders=borders,
            cumulative=found.to(device) if cumulative is None else cumulative,
            longest=max(stop - start for start, stop in pairwise(borders)),
        )

    def parts(self, length: int) -> Iterator[tuple[int, slice]]:
        """Row and indices of each document, in rows of `length`."""
        for start, stop in pairwise(self.borders):
            row = start // length
            yield row, slice(start - row * length, stop - row * length)


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Causal attention of the clean stream.

    Torch chooses its kernel by device and version; `benchmarks.attention` times each of them.

    Args:
        query: `[b, heads, L, head_dim]`.
        key: `[b, groups, L, head_dim]`.
        value: `[b, groups, L, head_dim]`.
        context: the micro-batch; its noisy stream, if it has one, is not used.

    Returns:
        `[b, heads, L, head_dim]`.
    """
    make_masks(context, query.device)
    documents: Documents = context.masks["causal"]
    batch, _, length, _ = query.shape
    if len(documents.borders) == batch + 1:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _attend_varlen(query, key, value, documents)
    parts = [
        F.scaled_dot_product_attention(
            query[row, :, indices], key[row, :, indices], value[row, :, indices], is_causal=True, enable_gqa=True
        )
        for row, indices in documents.parts(length)
    ]
    return torch.cat(parts, dim=1).unflatten(1, (batch, length)).transpose(0, 1)


def make_masks(context: StreamContext, device: torch.device) -> None:
    """Finds the documents of the clean stream, if that has not been done."""
    if "causal" not in context.masks:
        context.masks["causal"] = Documents.of(context.layout.documents, device, context.borders)


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """All documents in one kernel, which exists only on CUDA in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (heads.transpose(1, 2).flatten(0, 1) for heads in (query, key, value))
    ends, longest = documents.cumulative, documents.longest
    output: Any = varlen_attn(queries, keys, values, ends, ends, longest, longest, **varlen_arguments())
    return output.unflatten(0, (query.shape[0], query.shape[2])).transpose(1, 2)


@cache
def varlen_arguments() -> dict[str, Any]:
    """The arguments of this version of torch for causal attention with grouped keys.

    Older versions have a flag `is_causal`, later ones a window; older ones accept fewer key heads without a flag, later
    ones need `enable_gqa`.
    """
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return causal | ({"enable_gqa": True} if "enable_gqa" in known else {})
