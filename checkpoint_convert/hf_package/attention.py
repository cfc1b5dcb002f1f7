"""Converts a visibility rule to a mask for each of `transformers`' attention implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# Whether a query may attend to a key: three int tensors (row, query, key) that broadcast together -> bool. It is called
# with whole index grids and, by FlexAttention, with scalars under vmap, so it may only index and compare.
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionMask:
    """Visibility of one forward in the form that an attention implementation takes.

    Attributes:
        mask: argument of the attention function; None if `causal` describes the visibility.
        causal: the function's causal flag; used only without `mask`.
        flash: alignment of rows for the flash kernels, which take no masks.
    """

    mask: Tensor | BlockMask | None
    causal: bool = False
    flash: FlashRows | None = None


def prepare(
    implementation: str, rule: Rule, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> AttentionMask:
    """The mask of a rule.

    Args:
        implementation: `eager`, `sdpa` or `flex_attention`.
        rule: visibility.
        shape: numbers of rows, queries and keys.
        device: where attention runs.
        dtype: of queries and keys.

    Raises:
        ValueError: the implementation takes no masks.
    """
    rows, queries, keys = shape
    if implementation == "flex_attention":
        return AttentionMask(create_block_mask(_mask_mod(rule), rows, None, queries, keys, device=str(device)))
    if implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation: {implementation!r} cannot do this forward, whose visibility is neither causal nor a "
            "plain block over a cache; use 'sdpa', 'flex_attention' or 'eager'"
        )
    row, query, key = (torch.arange(size, device=device) for size in shape)
    allowed = rule(row[:, None, None], query[:, None], key).expand(shape).unsqueeze(1)
    if implementation == "sdpa":
        return AttentionMask(allowed)
    return AttentionMask(
        torch.zeros(allowed.shape, device=device, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    )


def _mask_mod(rule: Rule) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(row, query, key)

    return allowed


@dataclass(frozen=True)
class FlashRows:
    """Rows aligned to the right: the flash kernels assume that a row's last query is at the position of its last key.

    Attributes:
        groups: the causal and the bidirectional rows: their indices int64 `[g]` and the causal flag.
        query_at: int64 `[a, T]`, index of the query at each aligned column.
        key_at: int64 `[a, W]`, index of the key at each aligned column.
        real_keys: int64 `[a, W]`, 1 where an aligned column has a key.
        back: int64 `[a, T]`, aligned column of each query.
    """

    groups: list[tuple[Tensor, bool]]
    query_at: Tensor
    key_at: Tensor
    real_keys: Tensor
    back: Tensor

    @classmethod
    def of(cls, queries: int, counts: Tensor, seen: Tensor, causal: Tensor, device: torch.device) -> FlashRows:
        """Rows of `counts` real queries at the end of `seen` keys: int64 `[a]` both; `causal` is bool `[a]`."""
        column, width = torch.arange(queries), int(seen.max())
        shift = torch.arange(width) - (width - seen[:, None])
        groups = [(torch.nonzero(causal == flag).flatten().to(device), flag) for flag in (True, False)]
        return cls(
            groups=[(rows, flag) for rows, flag in groups if len(rows)],
            query_at=(column - (queries - counts[:, None])).clamp(min=0).to(device),
            key_at=shift.clamp(min=0).to(device),
            real_keys=(shift >= 0).long().to(device),
            back=(column + queries - counts[:, None]).clamp(max=queries - 1).to(device),
        )

    def attend(self, attend: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`[a, heads, T, d]` and twice `[a, groups, E, d]` to `[a, T, heads, d]`.

        Args:
            attend: the flash function: query, key, value, padding mask of the keys, causal flag -> `[g, T, heads, d]`.
            query: queries in the order of the step's tokens.
            key: keys in the order of the cache's entries.
            value: values in the order of the cache's entries.
        """
        query = _along(query, self.query_at)
        key, value = _along(key, self.key_at), _along(value, self.key_at)
        output = query.new_zeros(query.transpose(1, 2).shape)
        for rows, causal in self.groups:
            mask = self.real_keys[rows]
            output[rows] = attend(query[rows], key[rows], value[rows], None if mask.all() else mask, causal)
        return output.gather(1, self.back[:, :, None, None].expand_as(output))


def _along(heads: Tensor, index: Tensor) -> Tensor:
    """`[a, h, E, d]` gathered along E at int64 `[a, W]`: `[a, h, W, d]`."""
    return heads.gather(2, index[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[3]))
