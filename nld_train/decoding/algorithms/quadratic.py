"""Quadratic self-speculation: verify k drafts and prepare k drafts after each of them, in one forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.verification import Blend, Drafts, verify


def decode_quadratic(batch: Batch) -> None:
    """Decodes all rows, 1 to k tokens per forward (reference section 7).

    The tokens of a cycle travel as `[draft_0 .. draft_{k-1} | masks of group 0 | .. | masks of group k-1]`, the drafts
    in front, so that what they leave in the cache lies there as text, and keeping the accepted ones is a crop.
    """
    drafts = _next_drafts(batch, *_begin_rows(batch, batch.places))
    while batch.session.rows:
        before = batch.session.lengths
        verdicts = _cycle(batch, drafts.tokens)
        length = drafts.tokens.shape[1]
        accepted, following = verify(batch.sampler, drafts, verdicts, _blend(batch, _first_mask(batch, length)))
        # Of the k groups only one goes on: the head runs over its k masks instead of all k * k.
        predictions = batch.session.reread(masks_of(accepted, length))
        batch.session.crop(before + 1 + accepted)
        batch.commit_cycle(drafts.tokens, drafts.sizes, accepted, following)
        drafts = _next_drafts(batch, predictions, following)


def _begin_rows(batch: Batch, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Prefills `[prompt | MASK x k]`: predictions `[n, k, V]` at the masks, int64 `[n]` the AR tokens before them."""
    logits = batch.prefill(places, masks=batch.options.block_length)
    alone = Drafts(torch.zeros(len(logits), 1).long(), torch.ones(len(logits)).long(), logits[:, :1])
    blend = _blend(batch, lambda _: logits[:, 1])
    _, following = verify(batch.sampler.at(places), alone, logits[:, :1], blend)
    batch.commit_first(places, following)
    return logits[:, 1:], following


def _next_drafts(batch: Batch, predictions: Tensor, following: Tensor) -> Drafts:
    """Lets rows leave and others begin; then the drafts of each row at work, from what was predicted for it."""
    while True:
        staying, fresh = batch.turn_over()
        predictions, following = predictions[staying], following[staying]
        if not fresh:
            return _drafts_from(batch, predictions, following)
        predictions[fresh], following[fresh] = _begin_rows(batch, fresh)


def _blend(batch: Batch, predictions: Callable[[Tensor], Tensor]) -> Blend | None:
    """The diffusion share of the token after the accepted drafts; None for the lossless w = 1."""
    return Blend(batch.options.ar_weight, predictions) if batch.options.ar_weight < 1 else None


def _drafts_from(batch: Batch, predictions: Tensor, first: Tensor) -> Drafts:
    """Drafts from the mask predictions `[a, k, V]` of a group, the first one replaced by int64 `[a]` `first`.

    Groups keep their k masks to the end, so that a row's drafts never depend on what its batch has left to do; drafts
    beyond a row's budget are not drawn and not tested.
    """
    length = predictions.shape[1]
    sizes = batch.remaining().clamp(max=length) if batch.session.rows else first
    wanted = torch.arange(length) < sizes[:, None]
    wanted[:, 0] = False
    tokens = torch.where(wanted, batch.sampler.draw(predictions, wanted), 0)
    tokens[:, 0] = first
    return Drafts(tokens, sizes, predictions)


def _cycle(batch: Batch, drafts: Tensor) -> Tensor:
    """One forward over the drafts and the masks after each: verdicts `[a, k, V]` after each draft."""
    rows, length = drafts.shape
    group, offsets = groups(length)
    masks = torch.full((rows, len(group) - length), batch.mask_token_id)
    return batch.session.append_pattern(torch.cat([drafts, masks], 1), offsets, group_pattern(group, length), length)


def _first_mask(batch: Batch, length: int) -> Callable[[Tensor], Tensor]:
    """From groups int64 `[a]` of the last cycle to the logits `[a, V]` at the first mask of each."""
    return lambda group: batch.session.reread(masks_of(group, length)[:, :1])[:, 0]


def masks_of(groups: Tensor, length: int) -> Tensor:
    """Where the masks of group int64 `[a]` stand among the tokens of a cycle: int64 `[a, k]`."""
    return length + groups[:, None] * length + torch.arange(length)


def groups(length: int) -> tuple[Tensor, Tensor]:
    """Group of each token of a cycle and its offset from the row's length: two int64 `[k + k * k]`."""
    draft = torch.arange(length)
    group = torch.cat([draft, draft.repeat_interleave(length)])
    offsets = torch.cat([draft, (draft[:, None] + 1 + torch.arange(length)).flatten()])
    return group, offsets


def group_pattern(group: Tensor, length: int) -> Tensor:
    """Drafts see earlier drafts; masks of group j see drafts 0..j and their own group: bool `[T, T]` (query, key)."""
    is_draft = torch.arange(len(group)) < length
    earlier_draft = is_draft[None, :] & (group[None, :] <= group[:, None])
    own_masks = ~is_draft[:, None] & ~is_draft[None, :] & (group[None, :] == group[:, None])
    return earlier_draft | own_masks
