"""AR decoding: one causal forward per token."""

from __future__ import annotations

import torch

from nld_train.decoding.algorithms.batch import Batch


def decode_autoregressive(batch: Batch) -> None:
    """Decodes all sequences one token per forward (`docs/method.md`, "Decoding")."""
    tokens = batch.next_tokens(batch.prefill_first_tokens(batch.slots))
    while batch.session.active:
        ones = torch.ones(len(tokens), dtype=torch.int64)
        logits = batch.session.forward_append(tokens[:, None], ones)
        following = batch.sampling.draw(logits, torch.ones(len(tokens), 1, dtype=torch.bool))[:, 0]
        batch.commit_cycle(tokens[:, None], ones, torch.zeros_like(ones), following)
        tokens = batch.next_tokens(following)
