"""Quadratic self-speculation: verify k drafts and prepare k drafts after each of them, in one forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.verification import Drafts, mixed_logits, verify


def decode_quadratic(batch: Batch) -> None:
    """Decodes all sequences, 1 to k tokens per forward (`docs/method.md`, "Decoding").

    The tokens of a cycle are `[draft_0 .. draft_{k-1} | masks of group 0 | .. | masks of group k-1]`. The drafts come
    first, so that their keys and values are in order in the cache and committing the accepted ones is a crop.
    """
    drafts = _next_drafts(batch, *_prefill(batch, batch.slots))
    while batch.session.active:
        before = batch.session.lengths
        target_logits = _cycle(batch, drafts.tokens)
        length = drafts.tokens.shape[1]
        accepted, bonus = verify(batch.sampling, drafts, target_logits)
        # Of the k groups only one is used: the head runs over its k masks instead of all k * k.
        predictions = batch.session.logits_at(masks_of(accepted, length))
        batch.session.crop(before + 1 + accepted)
        batch.commit_cycle(drafts.tokens, drafts.sizes, accepted, bonus)
        drafts = _next_drafts(batch, predictions, bonus)


def _prefill(batch: Batch, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Prefills `[prompt | MASK x k]`: predictions `[n, k, V]` at the masks, int64 `[n]` the target's first tokens."""
    logits = batch.prefill(slots, masks=batch.options.block_length)
    no_drafts = Drafts(torch.zeros(len(logits), 1).long(), torch.ones(len(logits)).long(), logits[:, :1])
    target = logits[:, :1]
    if batch.options.ar_weight < 1:
        target = mixed_logits(target, logits[:, 1:2], batch.options.ar_weight)
    _, first = verify(batch.sampling.at(slots), no_drafts, target)
    batch.commit_first(slots, first)
    return logits[:, 1:], first


def _next_drafts(batch: Batch, predictions: Tensor, bonus: Tensor) -> Drafts:
    """Refills the slots; then the drafts of each active sequence from its predictions."""
    while True:
        kept, admitted = batch.refill_slots()
        predictions, bonus = predictions[kept], bonus[kept]
        if not admitted:
            return _drafts_from(batch, predictions, bonus)
        predictions[admitted], bonus[admitted] = _prefill(batch, admitted)


def _drafts_from(batch: Batch, predictions: Tensor, first: Tensor) -> Drafts:
    """Drafts from the mask predictions `[a, k, V]` of a group, the first one replaced by int64 `[a]` `first`.

    Groups always have k masks, so that the drafts of a sequence do not depend on the remaining budgets of the others;
    drafts beyond a sequence's budget are neither sampled nor verified.
    """
    length = predictions.shape[1]
    sizes = batch.remaining().clamp(max=length) if batch.session.active else first
    needed = torch.arange(length) < sizes[:, None]
    needed[:, 0] = False
    tokens = torch.where(needed, batch.sampling.draw(predictions, needed), 0)
    tokens[:, 0] = first
    return Drafts(tokens, sizes, predictions)


def _cycle(batch: Batch, drafts: Tensor) -> Tensor:
    """One forward over the drafts and the masks after each: target logits `[a, k, V]` after each draft.

    With w < 1 the target is the ensemble of the AR prediction and that of the first mask of the draft's group.
    """
    rows, length = drafts.shape
    group, offsets = groups(length)
    masks = torch.full((rows, len(group) - length), batch.mask_token_id)
    tokens = torch.cat([drafts, masks], 1)
    logits = batch.session.forward_append_pattern(tokens, offsets, group_pattern(group, length), length)
    if batch.options.ar_weight == 1:
        return logits
    first_masks = masks_of(torch.arange(length), length)[:, 0].expand(rows, -1)
    return mixed_logits(logits, batch.session.logits_at(first_masks), batch.options.ar_weight)


def masks_of(groups: Tensor, length: int) -> Tensor:
    """Indices of the masks of group int64 `[a]` among the tokens of a cycle: int64 `[a, k]`."""
    return length + groups[:, None] * length + torch.arange(length)


def groups(length: int) -> tuple[Tensor, Tensor]:
    """Group of each token of a cycle and its offset from the sequence's length: two int64 `[k + k * k]`."""
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
