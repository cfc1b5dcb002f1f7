"""Quadratic self-speculation: verify k drafts and prepare k drafts after each of them, in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.forwards import Forwards
from nld_train.decoding.algorithms.sampling import Shaping
from nld_train.decoding.algorithms.verification import Drafts, block_masks, mixed_logits, needed_numbers, verify


def decode_quadratic(batch: Batch) -> None:
    """Decodes all sequences, 1 to k tokens per forward (`docs/method.md`, "Decoding").

    The tokens of a cycle are `[draft_0 .. draft_{k-1} | masks of group 0 | .. | masks of group k-1]`. The drafts come
    first, so that their keys and values are in order in the cache and committing the accepted ones is a crop.
    """
    options, length = batch.options, batch.options.block_length
    body = Cycle(batch.sampling.shaping, length, batch.mask_token_id, options.ar_weight)
    predictions, first = _next_predictions(batch, *_prefill(batch, batch.slots))
    while batch.session.active:
        sizes = batch.remaining().clamp(max=length)
        needed = torch.cat([block_masks(sizes, length), needed_numbers(sizes, length)], 1)
        inputs = {"predictions": predictions, "first": first, "sizes": sizes, **batch.sampling.numbers(needed)}
        found, predictions = batch.session.cycle(body, length * (length + 1), inputs)
        accepted, bonus = found[:, length], found[:, length + 1]
        batch.session.commit(1 + accepted)
        batch.commit_cycle(found[:, :length], sizes, accepted, bonus)
        predictions, first = _next_predictions(batch, predictions, bonus)


def _prefill(batch: Batch, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Prefills `[prompt | MASK x k]`: predictions `[n, k, V]` at the masks, int64 `[n]` the target's first tokens."""
    logits = batch.prefill(slots, masks=batch.options.block_length)
    target = logits[:, :1]
    if batch.options.ar_weight < 1:
        target = mixed_logits(target, logits[:, 1:2], batch.options.ar_weight)
    first = batch.sampling.shaping.draw(target, batch.sampling.at(slots).one_each().get("numbers"))[:, 0].cpu()
    batch.commit_first(slots, first)
    return logits[:, 1:], first


def _next_predictions(batch: Batch, predictions: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Refills the slots: from the predictions and bonus tokens of each sequence to those of each active sequence."""
    while True:
        kept, admitted = batch.refill_slots()
        if len(kept) < len(first):
            predictions, first = predictions[kept], first[kept]
        if not admitted:
            return predictions, first
        predictions[admitted], first[admitted] = _prefill(batch, admitted)


@dataclass(frozen=True)
class Cycle:
    """A `forwards.Body`: drafts from predictions, verified, and the predictions after the accepted ones.

    Groups always have k masks, so that the drafts of a sequence do not depend on the remaining budgets of the others;
    drafts beyond a sequence's budget are neither sampled nor verified.

    Inputs: float32 `[a, k, V]` the predictions at the masks of a group, int64 `[a]` the token before those of the
    drafts that come from them, int64 `[a]` the number of drafts. Results: int64 `[a, k + 2]`, the drafts, the number of
    accepted ones, and the bonus token; float32 `[a, k, V]`.
    """

    shaping: Shaping
    length: int
    mask_token_id: int
    ar_weight: float

    def __call__(
        self, forwards: Forwards, predictions: Tensor, first: Tensor, sizes: Tensor, numbers: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """See `forwards.Body`."""
        drawing, verifying = (None, None) if numbers is None else numbers.tensor_split(2, dim=1)
        drawn = self.shaping.draw(predictions, drawing).to(first.device)
        tokens = torch.where(block_masks(sizes, self.length), drawn, 0)
        tokens[:, 0] = first
        target_logits = self._target_logits(forwards, tokens)
        accepted, bonus = verify(self.shaping, Drafts(tokens, sizes, predictions), target_logits, verifying)
        # Of the k groups only one is used: the head runs over its k masks instead of all k * k.
        following = forwards.logits_at(masks_of(accepted, self.length))
        return torch.cat([tokens, accepted[:, None], bonus[:, None]], 1), following

    def _target_logits(self, forwards: Forwards, drafts: Tensor) -> Tensor:
        """One forward over the drafts and the masks after each: target logits `[a, k, V]` after each draft.

        With w < 1 the target is the ensemble of the AR prediction and that of the first mask of the draft's group.
        """
        (rows, length), device = drafts.shape, drafts.device
        group, offsets = groups(length, device)
        masks = torch.full((rows, len(group) - length), self.mask_token_id, device=device)
        logits = forwards.pattern(torch.cat([drafts, masks], 1), offsets, group_pattern(group, length), length)
        if self.ar_weight == 1:
            return logits
        first_masks = masks_of(torch.arange(length, device=device), length)[:, 0].expand(rows, -1)
        return mixed_logits(logits, forwards.logits_at(first_masks), self.ar_weight)


def masks_of(groups: Tensor, length: int) -> Tensor:
    """Indices of the masks of group int64 `[a]` among the tokens of a cycle: int64 `[a, k]`."""
    return length + groups[:, None] * length + torch.arange(length, device=groups.device)


def groups(length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Group of each token of a cycle and its offset from the sequence's length: two int64 `[k + k * k]`."""
    draft = torch.arange(length, device=device)
    group = torch.cat([draft, draft.repeat_interleave(length)])
    offsets = torch.cat([draft, (draft[:, None] + 1 + draft).flatten()])
    return group, offsets


def group_pattern(group: Tensor, length: int) -> Tensor:
    """Drafts see earlier drafts; masks of group j see drafts 0..j and their own group: bool `[T, T]` (query, key)."""
    is_draft = torch.arange(len(group), device=group.device) < length
    earlier_draft = is_draft[None, :] & (group[None, :] <= group[:, None])
    own_masks = ~is_draft[:, None] & ~is_draft[None, :] & (group[None, :] == group[:, None])
    return earlier_draft | own_masks
