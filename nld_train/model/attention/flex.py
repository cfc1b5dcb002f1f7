"""Attention through FlexAttention: one block mask per micro-batch, shared by all layers, GQA without copies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from nld_train.config.attention_backends import names_of
from nld_train.errors import UserError
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import Coordinates, coordinates, visible
from nld_train.model.attention import causal
from nld_train.model.streams import StreamContext

# Masks of the last few layouts. Without document borders every micro-batch has the same; a stage and its validation,
# or the passes of a drafter stage, take turns.
_KEPT_MASKS = 4
_masks: OrderedDict[tuple[Any, ...], BlockMask] = OrderedDict()


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`. Needs CUDA, but for a forward pass without gradients.

    The clean stream alone, as in an AR stage, is left to the causal kernel.

    Raises:
        UserError: gradients are asked for on a CPU.
    """
    refuse_gradients_on_cpu(query, "flex")
    if not context.layout.two_streams and context.shard is None:
        return causal.attend(query, key, value, context)
    if "flex" not in context.masks:
        context.masks["flex"] = block_mask(context.layout, query.device, context.queries)
    return kernel(query.device)(query, key, value, block_mask=context.masks["flex"], enable_gqa=True)


def refuse_gradients_on_cpu(query: Tensor, backend: str) -> None:
    """Raise `UserError` where FlexAttention would have to run its backward pass on a CPU, for which it has none."""
    if not query.is_cuda and query.requires_grad:
        valid = names_of(lambda other: "cpu" in other.trains_on)
        raise UserError(f"execution.attention: {backend} has no backward pass on a CPU; use {valid}")


def block_mask(
    layout: StreamLayout, device: torch.device, queries: Tensor | None = None, keys: Tensor | None = None
) -> BlockMask:
    """The rule of visibility as a block-sparse mask; rows that are all alike share one.

    It is made once for equal layouts: the last few are kept.

    Args:
        layout: of one micro-batch.
        device: where attention runs.
        queries: int `[n]`, the places that ask, or None for all.
        keys: int `[m]`, the places that are asked, or None for all.
    """
    identity = _identity(layout, device, queries, keys)
    if identity not in _masks:
        _masks[identity] = make_mask(layout, device, queries, keys)
        while len(_masks) > _KEPT_MASKS:
            _masks.popitem(last=False)
    _masks.move_to_end(identity)
    return _masks[identity]


def forget_masks() -> None:
    """The next mask is made anew, whatever layout it is for."""
    _masks.clear()


def _identity(layout: StreamLayout, device: torch.device, queries: Tensor | None, keys: Tensor | None) -> Any:
    """What decides a mask: the borders of documents and blocks, whatever their numbers are."""
    borders = [field.diff(dim=1).ne(0).numpy() for field in (layout.documents, layout.blocks)]
    if _alike(layout):
        borders = [field[:1] for field in borders]
    places = (None if some is None else some.cpu().numpy().tobytes() for some in (queries, keys))
    kinds = (layout.two_streams, layout.causal_blocks, layout.length, str(device))
    return (*kinds, *((field.shape, field.tobytes()) for field in borders), *places)


def _alike(layout: StreamLayout) -> bool:
    """Whether all rows have one mask. Blocks of equal documents may begin elsewhere."""
    return all(bool((field == field[:1]).all()) for field in (layout.documents, layout.blocks))


def make_mask(
    layout: StreamLayout, device: torch.device, queries: Tensor | None = None, keys: Tensor | None = None
) -> BlockMask:
    """`block_mask`, made anew."""
    alike, total = _alike(layout), layout.total_length
    rows = 1 if alike else len(layout.documents)
    tokens = Coordinates(*(field[:rows].to(device) for field in coordinates(layout)))
    asking, asked = (tokens if places is None else tokens.at(places.to(device)) for places in (queries, keys))

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = batch * 0 if alike else batch
        query_at = Coordinates(*(field[row, query] for field in asking))
        key_at = Coordinates(*(field[row, key] for field in asked))
        return visible(query_at, key_at, layout.causal_blocks)

    asked_for, over = (total if places is None else len(places) for places in (queries, keys))
    return create_block_mask(allowed, None if alike else rows, None, asked_for, over, device=str(device))


def kernel(device: torch.device) -> Callable[..., Any]:
    """FlexAttention, fused on CUDA; elsewhere it computes all scores."""
    plain: Any = flex_attention
    return _compiled() if device.type == "cuda" else plain


@cache
def _compiled() -> Callable[..., Any]:
    """The fused kernel. It exists only compiled; lengths are fixed in a run, so shapes are static."""
    return torch.compile(flex_attention, dynamic=False)
