"""AR decoding: one causal forward per token."""

from __future__ import annotations

import torch

from nld_train.decoding.algorithms.batch import Batch


def decode_autoregressive(batch: Batch) -> None:
    """Decodes all rows one token per forward (reference section 7)."""
    tokens = batch.next_tokens(batch.begin_rows(batch.places))
    while batch.session.rows:
        ones = torch.ones(len(tokens), dtype=torch.int64)
        logits = batch.session.append(tokens[:, None], ones)
        following = batch.sampler.draw(logits, torch.ones(len(tokens), 1, dtype=torch.bool))[:, 0]
        batch.commit_cycle(tokens[:, None], ones, torch.zeros_like(ones), following)
        tokens = batch.next_tokens(following)
