"""Attention through FlexAttention: one block mask per micro-batch, shared by all layers, GQA without copies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from nld_train.config.attention_backends import names_of
from nld_train.errors import UserError
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import Coordinates, coordinates, visible
from nld_train.model.attention import causal
from nld_train.model.compiled import CompiledFunction
from nld_train.model.streams import StreamContext

# Masks of the last few layouts. Without document borders every micro-batch has the same one; a stage and its
# validation, or the passes of a drafter stage, alternate between a few.
_KEPT_MASKS = 4
_masks: OrderedDict[tuple[Any, ...], BlockMask] = OrderedDict()


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """Same arguments and result as `dense.attend`. Needs CUDA, except for a forward pass without gradients.

    A causal clean stream without a noisy one, as in an AR stage, is computed by the causal kernel.

    Raises:
        UserError: gradients are required on a CPU.
    """
    refuse_gradients_on_cpu(query, "flex")
    if context.layout.only_causal and context.shard is None:
        return causal.attend(query, key, value, context)
    make_masks(context, query.device)
    return kernel(query.device)(query, key, value, block_mask=context.masks["flex"], enable_gqa=True)


def make_masks(context: StreamContext, device: torch.device) -> None:
    """Makes the block mask of a micro-batch, if that has not been done."""
    if context.layout.only_causal and context.shard is None:
        causal.make_masks(context, device)
    elif "flex" not in context.masks:
        context.masks["flex"] = block_mask(
            context.layout, device, context.queries, context.keys, on_device=context.device_layout
        )


def refuse_gradients_on_cpu(query: Tensor, backend: str) -> None:
    """Raise `UserError` where gradients are required on a CPU, where FlexAttention has no backward pass."""
    if not query.is_cuda and query.requires_grad:
        valid = names_of(lambda other: "cpu" in other.trains_on)
        raise UserError(f"execution.attention: {backend} has no backward pass on a CPU; use {valid}")


def block_mask(
    layout: StreamLayout,
    device: torch.device,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    on_device: StreamLayout | None = None,
) -> BlockMask:
    """Visibility as a block-sparse mask, computed once for rows with equal documents and blocks.

    The masks of the last few layouts are cached.

    Args:
        layout: of one micro-batch.
        device: where attention runs.
        queries: int `[n]`, indices in the stacked streams of the queries, or None for all.
        keys: int `[m]`, indices in the stacked streams of the keys, or None for all.
        on_device: the layout on the device, where it is there already.
    """
    identity = _identity(layout, device, queries, keys)
    if identity not in _masks:
        _masks[identity] = make_mask(layout, device, queries, keys, on_device)
        while len(_masks) > _KEPT_MASKS:
            _masks.popitem(last=False)
    _masks.move_to_end(identity)
    return _masks[identity]


def clear_masks() -> None:
    """Empties the cache of masks."""
    _masks.clear()


def _identity(layout: StreamLayout, device: torch.device, queries: Tensor | None, keys: Tensor | None) -> Any:
    """The cache key of a mask: the borders of documents and blocks; their ids do not matter."""
    fields = [layout.documents.diff(dim=1).ne(0)]
    if layout.noisy is not None:
        fields += [layout.noisy.blocks.diff(dim=1).ne(0), layout.noisy.begins]
    if layout.clean_ends is not None:
        fields += [layout.clean_ends]
    if _equal_rows(layout):
        fields = [field[:1] for field in fields]
    indices = (None if some is None else some.cpu().numpy().tobytes() for some in (queries, keys))
    blocks = layout.causal_blocks, layout.clean_ends is None
    kinds = (layout.two_streams, *blocks, *layout.documents.shape, layout.noisy_length, str(device))
    return (*kinds, *((field.shape, field.numpy().tobytes()) for field in fields), *indices)


def _equal_rows(layout: StreamLayout) -> bool:
    """Whether all rows have one mask. Rows with equal documents may have other blocks."""
    noisy = () if layout.noisy is None else (layout.noisy.blocks, layout.noisy.begins)
    clean = () if layout.clean_ends is None else (layout.clean_ends,)
    return all(bool((field == field[:1]).all()) for field in (layout.documents, *noisy, *clean))


def make_mask(
    layout: StreamLayout,
    device: torch.device,
    queries: Tensor | None = None,
    keys: Tensor | None = None,
    on_device: StreamLayout | None = None,
) -> BlockMask:
    """`block_mask` without the cache."""
    batch, total = len(layout.documents), layout.total_length
    tokens = Coordinates(*(field.to(device) for field in coordinates(on_device or layout)))
    query_tokens, key_tokens = (
        tokens if some is None else tokens.at(_on_device(some, device)) for some in (queries, keys)
    )

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_at = Coordinates(*(field[row, query] for field in query_tokens))
        key_at = Coordinates(*(field[row, key] for field in key_tokens))
        return visible(query_at, key_at, layout.causal_blocks)

    query_count, key_count = (total if some is None else len(some) for some in (queries, keys))
    rows = 1 if _equal_rows(layout) else batch
    mask = create_block_mask(allowed, rows, None, query_count, key_count, device=str(device))
    return mask if rows == batch else _repeat(mask, batch)


def _repeat(mask: BlockMask, batch: int) -> BlockMask:
    """The mask of one row for `batch` rows.

    Rows that differ have masks of their own, and a kernel is compiled for each form of mask: so all have the same form.
    """
    parts = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    rows = [None if part is None else part.repeat_interleave(batch, dim=0) for part in parts]
    repeated: Any = BlockMask.from_kv_blocks
    named = {"BLOCK_SIZE": mask.BLOCK_SIZE, "mask_mod": mask.mask_mod, "seq_lengths": mask.seq_lengths}
    made: BlockMask = repeated(*rows, **named)
    return made


def _on_device(indices: Tensor, device: torch.device) -> Tensor:
    """Indices int64 `[n]` on a device; those of the last few calls are kept there, since a run uses the same ones."""
    return _cached_indices(indices.cpu().numpy().tobytes(), device)


@lru_cache(maxsize=_KEPT_MASKS)
def _cached_indices(content: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.int64).to(device)


def kernel(device: torch.device) -> Callable[..., Any]:
    """FlexAttention, fused on CUDA; elsewhere the unfused version, which computes all scores."""
    plain: Any = flex_attention
    return _compiled() if device.type == "cuda" else plain


# A stage needs one with and one without gradients for each length and batch size, of training and of validation, and a
# drafter stage twice as many, since its two passes have other masks: 16 in a run of several stages.
_VARIANTS = 32


@cache
def _compiled() -> CompiledFunction:
    """The fused kernel, which exists only through `torch.compile`; lengths are fixed in a run, so shapes are static."""
    return CompiledFunction(_attention, "FlexAttention", "execution.attention", _VARIANTS)


def _attention(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Any:
    """FlexAttention."""
    plain: Any = flex_attention
    return plain(query, key, value, **named)
