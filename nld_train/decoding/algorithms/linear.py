"""Linear self-speculation: draft a block in one bidirectional pass, verify it in one causal pass."""

from __future__ import annotations

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.verification import Drafts, verify


def decode_linear(batch: Batch) -> None:
    """Decodes all sequences, 1 to B tokens per 2 forwards, as AR decoding would (`docs/method.md`, "Decoding")."""
    seeds = batch.next_tokens(batch.prefill_first_tokens(batch.slots))
    while batch.session.active:
        drafts = _draft(batch, seeds)
        before = batch.session.lengths
        target_logits = batch.session.forward_append(drafts.tokens, drafts.sizes)
        accepted, bonus = verify(batch.sampling, drafts, target_logits)
        batch.session.crop(before + 1 + accepted)
        batch.commit_cycle(drafts.tokens, drafts.sizes, accepted, bonus)
        seeds = batch.next_tokens(bonus)


def _draft(batch: Batch, seeds: Tensor) -> Drafts:
    """Blocks `[seed, MASK x (size - 1)]` filled in one pass; with one token left there is nothing to draft."""
    sizes = batch.remaining().clamp(max=batch.options.block_length)
    tokens = torch.full((len(seeds), int(sizes.max())), batch.mask_token_id)
    tokens[:, 0] = seeds
    masked = torch.arange(tokens.shape[1]) < sizes[:, None]
    masked[:, 0] = False
    if not bool(masked.any()):
        return Drafts(tokens, sizes, None)
    logits = batch.session.forward_read_only(tokens, sizes, adapter=batch.options.adapter, counted=sizes > 1)
    return Drafts(torch.where(masked, batch.sampling.draw(logits, masked), tokens), sizes, logits)
