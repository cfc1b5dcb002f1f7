"""Attention over many short documents: a few batched products, however many documents and blocks there are.

Queries are cut into tiles of neighbours, each with the keys that it sees (`masking.tiles`). Tiles of similar size are
padded to one shape and computed as a batch, with a mask from the rule of visibility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.masking.layout import StreamLayout
from nld_train.masking.tiles import Tiles
from nld_train.masking.visibility import Coordinates, coordinates, visible
from nld_train.model.streams import StreamContext


@dataclass(frozen=True)
class Batch:
    """Tiles that are padded to one shape.

    Attributes:
        queries: int64 `[n, q]`, index of each query in the flattened `[queries, b]` tokens; 0 or more for padding.
        is_query: bool `[n, q]`, False for padding.
        keys: int64 `[n, k]`, index of each key in the flattened `[S, b]` tokens.
        mask: `[n, 1, q, k]`, minus infinity where a query does not see a key, 0 elsewhere.
    """

    queries: Tensor
    is_query: Tensor
    keys: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Tiling:
    """All queries of a micro-batch in batches of tiles.

    Attributes:
        batches: the batches.
        queries: int64, the queries of all batches, one after another.
        keys: int64, the keys of all batches, one after another.
        outputs: int64 `[queries * b]`, index of each query among `queries`.
    """

    batches: tuple[Batch, ...]
    queries: Tensor
    keys: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, context: StreamContext, dtype: torch.dtype, device: torch.device) -> Tiling:
        """The tiling of a micro-batch; `dtype` and `device` are those of the queries."""
        layout = context.layout
        listed = torch.arange(layout.total_length) if context.queries is None else context.queries
        make = partial(_batch, layout, coordinates(layout), listed, dtype, device)
        batches = tuple(make(*similar) for similar in Tiles.of(layout, listed).batches())
        queries, is_query, keys = (
            torch.cat([getattr(batch, name).flatten() for batch in batches]) for name in ("queries", "is_query", "keys")
        )
        outputs = torch.empty(len(listed) * len(layout.documents), dtype=torch.int64)
        outputs[queries[is_query]] = is_query.nonzero().flatten()
        return cls(batches, queries.to(device), keys.to(device), outputs.to(device))


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`."""
    if "tiled" not in context.masks:
        context.masks["tiled"] = Tiling.of(context, query.dtype, query.device)
    tiling: Tiling = context.masks["tiled"]
    parts = [_parts(query, tiling.queries, [batch.queries for batch in tiling.batches])]
    parts += [_parts(heads, tiling.keys, [batch.keys for batch in tiling.batches]) for heads in (key, value)]
    outputs = []
    for batch, queries, keys, values in zip(tiling.batches, *parts, strict=True):
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=batch.mask, enable_gqa=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    tokens = torch.cat(outputs).index_select(0, tiling.outputs)
    return tokens.unflatten(0, (query.shape[2], query.shape[0])).permute(1, 2, 0, 3)


def _parts(heads: Tensor, indices: Tensor, shapes: Sequence[Tensor]) -> list[Tensor]:
    """Tokens of `[b, heads, S, head_dim]` as `[n, heads, m, head_dim]`, for the `[n, m]` indices of each batch.

    `[S, b, heads, head_dim]` is what Megatron's tensors are in memory, so that tokens are copied whole.
    """
    tokens = heads.permute(2, 0, 1, 3).flatten(0, 1).index_select(0, indices)
    parts = tokens.split([each.numel() for each in shapes])
    return [part.unflatten(0, tuple(each.shape)).transpose(1, 2) for part, each in zip(parts, shapes, strict=True)]


def _batch(
    layout: StreamLayout,
    tokens: Coordinates,
    listed: Tensor,
    dtype: torch.dtype,
    device: torch.device,
    tiles: Tiles,
    most_queries: int,
    most_keys: int,
) -> Batch:
    """The batch of some tiles, padded to numbers of queries and keys; `tokens` are the coordinates of the layout."""
    tile = Tiles(*(field[:, None] for field in vars(tiles).values()))
    step_query, step_key = np.arange(most_queries), np.arange(most_keys)
    clean = layout.noisy_length + tile.clean + step_key
    key = np.where(step_key < tile.clean_keys, clean, tile.noisy + step_key - tile.clean_keys)
    is_key, is_query = step_key < tile.clean_keys + tile.noisy_keys, step_query < tile.queries
    key, query = np.where(is_key, key, 0), np.where(is_query, tile.query + step_query, 0)
    row, queries, keys = (torch.from_numpy(each) for each in (tile.row, query, key))
    pair = ((listed[queries], 2), (keys, 1))
    query_at, key_at = (Coordinates(*(field[row, index] for field in tokens)).expand(dim) for index, dim in pair)
    sees = visible(query_at, key_at, layout.causal_blocks) & torch.from_numpy(is_key).unsqueeze(1)
    # Padding sees the first key, so that its softmax is a number.
    sees[..., 0] |= torch.from_numpy(~is_query)
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, float("-inf")).unsqueeze(1)
    rows = len(layout.documents)
    return Batch(queries * rows + row, torch.from_numpy(is_query), keys * rows + row, mask.to(device))
