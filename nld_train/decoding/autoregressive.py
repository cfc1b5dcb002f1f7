"""AR decoding: one causal forward per token."""

from __future__ import annotations

import torch

from .batch import Batch


def decode_autoregressive(batch: Batch) -> None:
    """Decodes all rows one token per forward (reference section 7)."""
    tokens = batch.sampler.draw(batch.session.prefill(), torch.ones(len(batch.outputs), 1, dtype=torch.bool))
    tokens = tokens[batch.commit_first(tokens[:, 0])]
    while batch.session.rows:
        ones = torch.ones(len(tokens), dtype=torch.int64)
        logits = batch.session.append(tokens, ones)
        following = batch.sampler.draw(logits, torch.ones_like(tokens, dtype=torch.bool))
        staying = batch.commit_cycle(tokens, ones, torch.zeros_like(ones), following[:, 0])
        tokens = following[staying]
