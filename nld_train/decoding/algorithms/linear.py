"""Linear self-speculation: draft a block in one bidirectional pass, verify it in one causal pass."""

from __future__ import annotations

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.verification import Drafts, verify


def decode_linear(batch: Batch) -> None:
    """Decodes all rows, 1 to B tokens per 2 forwards, as AR decoding would (reference section 7)."""
    seeds = batch.next_tokens(batch.begin_rows(batch.places))
    while batch.session.rows:
        drafts = _draft(batch, seeds)
        before = batch.session.lengths
        verdicts = batch.session.append(drafts.tokens, drafts.sizes)
        accepted, following = verify(batch.sampler, drafts, verdicts)
        batch.session.crop(before + 1 + accepted)
        batch.commit_cycle(drafts.tokens, drafts.sizes, accepted, following)
        seeds = batch.next_tokens(following)


def _draft(batch: Batch, seeds: Tensor) -> Drafts:
    """Blocks `[seed, MASK x (size - 1)]` filled in one pass; a row with one token to go has nothing to draft."""
    sizes = batch.remaining().clamp(max=batch.options.block_length)
    tokens = torch.full((len(seeds), int(sizes.max())), batch.mask_token_id)
    tokens[:, 0] = seeds
    masked = torch.arange(tokens.shape[1]) < sizes[:, None]
    masked[:, 0] = False
    if not bool(masked.any()):
        return Drafts(tokens, sizes, None)
    logits = batch.session.look(tokens, sizes, adapter=batch.options.adapter, busy=sizes > 1)
    return Drafts(torch.where(masked, batch.sampler.draw(logits, masked), tokens), sizes, logits)
