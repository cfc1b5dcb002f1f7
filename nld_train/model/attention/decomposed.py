"""Attention of two streams from three products, none of which needs a mask over both streams.

The clean half is one of them. A noisy token attends to its own block and to the clean tokens of earlier blocks. Both
are separate products, each with a normaliser, the log-sum-exp of its scores; the softmax over both is their weighted
mean:

    softmax over A and B = w * softmax over A + (1 - w) * softmax over B,   w = sigmoid(lse_A - lse_B)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest
from torch.utils.checkpoint import checkpoint

from nld_train.masking.layout import StreamLayout
from nld_train.model.attention import clean_half, flex
from nld_train.model.attention.blocks import Blocks
from nld_train.model.attention.chunked import Block, row_groups
from nld_train.model.streams import StreamContext

# A product's output and the log-sum-exp of its scores.
Partial = tuple[Tensor, Tensor]


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`; not under context parallelism, which the configuration refuses."""
    assert context.shard is None, "the decomposition needs whole streams"
    if not context.layout.two_streams:
        return clean_half.attend(query, key, value, context)
    lengths = [context.layout.noisy_length, context.layout.length]
    noisy_query, clean_query = query.split(lengths, dim=2)
    noisy_key, clean_key = key.split(lengths, dim=2)
    noisy_value, clean_value = value.split(lengths, dim=2)
    own: Any = checkpoint(
        _own_blocks, noisy_query, noisy_key, noisy_value, context, use_reentrant=False, preserve_rng_state=False
    )
    noisy = merge(own, earlier_blocks(noisy_query, clean_key, clean_value, context))
    return torch.cat([noisy, clean_half.attend(clean_query, clean_key, clean_value, context)], dim=2)


def merge(first: Partial, second: Partial) -> Tensor:
    """The softmax over the keys of both products; a normaliser of minus infinity means no keys."""
    weight = torch.sigmoid(first[1] - second[1]).unsqueeze(-1)
    return (weight * first[0] + (1 - weight) * second[0]).to(first[0].dtype)


def product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Partial:
    """Attention with all scores at once, in float32 at least.

    Args:
        query: `[..., n, head_dim]`.
        key: `[..., m, head_dim]`.
        value: `[..., m, head_dim]`.
        mask: bool, broadcast to `[..., n, m]`; at least one key per query, or None for all.

    Returns:
        `[..., n, head_dim]` and `[..., n]`, the latter in the type of the scores.
    """
    wide = _score_type(query)
    scores = (query.to(wide) * query.shape[-1] ** -0.5) @ key.to(wide).transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    normaliser = scores.logsumexp(dim=-1)
    return (scores - normaliser.unsqueeze(-1)).exp().to(value.dtype) @ value, normaliser


def _score_type(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


def _own_blocks(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Partial:
    """Noisy tokens over the noisy tokens of their block: one batched product over padded blocks.

    Recomputed in the backward pass instead of stored: its scores are larger than its inputs.
    """
    if "blocks" not in context.masks:
        assert context.layout.noisy is not None
        context.masks["blocks"] = Blocks.of(context.layout.noisy.blocks, query.device)
    blocks: Blocks = context.masks["blocks"]
    groups = key.shape[1]
    # Query heads that share keys are folded into the queries of the block.
    folded = blocks.gather(query).unflatten(1, (groups, -1)).movedim(2, 3).flatten(3, 4)
    mask = blocks.mask(context.layout.causal_blocks)
    if mask is not None:
        mask = mask.repeat(1, 1, 1, query.shape[1] // groups, 1)
    output, normaliser = product(folded, blocks.gather(key), blocks.gather(value), mask)
    output, normaliser = (
        each.unflatten(3, (-1, blocks.size)).movedim(3, 2).flatten(1, 2) for each in (output, normaliser)
    )
    return blocks.scatter(output), blocks.scatter(normaliser.unsqueeze(-1)).squeeze(-1)


def earlier_blocks(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Partial:
    """Noisy queries over the clean keys of earlier blocks of their document.

    Queries without earlier blocks get an output of zeros and a normaliser of minus infinity.
    """
    if not query.is_cuda:
        return _block_by_block(query, key, value, context.layout)
    return in_one_kernel(query, key, value, context)


def in_one_kernel(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Partial:
    """`earlier_blocks` through FlexAttention, whose log-sum-exp has gradients."""
    make_earlier_mask(context, query.device)
    named: dict[str, Any] = {"block_mask": context.masks["decomposed"], "enable_gqa": True}
    output, auxiliary = flex.kernel(query.device)(query, key, value, return_aux=AuxRequest(lse=True), **named)
    return output, auxiliary.lse


def make_earlier_mask(context: StreamContext, device: torch.device) -> None:
    """Makes the block mask of `in_one_kernel`, if that has not been done."""
    if "decomposed" not in context.masks:
        noisy, clean = torch.arange(context.layout.total_length).split(
            [context.layout.noisy_length, context.layout.length]
        )
        context.masks["decomposed"] = flex.block_mask(context.layout, device, noisy, clean)


def _block_by_block(query: Tensor, key: Tensor, value: Tensor, layout: StreamLayout) -> Partial:
    """`earlier_blocks` in plain torch: each block over the clean tokens before it; equal rows are batched."""
    found: list[Partial] = []
    order: list[int] = []
    for group in row_groups(layout):
        rows = torch.tensor(group.rows, device=query.device)
        order += group.rows
        parts = _blocks_of_equal_rows(query[rows], key[rows], value[rows], group.blocks)
        output, normaliser = zip(*parts, strict=True)
        found.append((torch.cat(output, dim=2), torch.cat(normaliser, dim=2)))
    back = torch.argsort(torch.tensor(order, device=query.device))
    outputs, normalisers = zip(*found, strict=True)
    return torch.cat(outputs)[back], torch.cat(normalisers)[back]


def _blocks_of_equal_rows(query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block]) -> Iterator[Partial]:
    """Block after block of the noisy stream."""
    groups = key.shape[1]
    for block in blocks:
        queries = query[:, :, block.start : block.stop]
        if block.begin == block.document:
            yield (
                torch.zeros_like(queries),
                queries.new_full(queries.shape[:-1], float("-inf"), dtype=_score_type(queries)),
            )
            continue
        before = slice(block.document, block.begin)
        folded = queries.unflatten(1, (groups, -1)).flatten(2, 3)
        output, normaliser = product(folded, key[:, :, before], value[:, :, before])
        yield output.reshape(queries.shape), normaliser.reshape(queries.shape[:-1])
