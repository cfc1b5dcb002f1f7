"""AR decoding: one causal forward per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.forwards import Forwards
from nld_train.decoding.algorithms.sampling import Shaping


def decode_autoregressive(batch: Batch) -> None:
    """Decodes all sequences one token per forward (`docs/method.md`, "Decoding")."""
    tokens = batch.next_tokens(batch.prefill_first_tokens(batch.slots))
    body = NextToken(batch.sampling.shaping)
    while batch.session.active:
        (following,) = batch.session.cycle(body, 1, {"tokens": tokens[:, None], **batch.sampling.one_each()})
        ones = torch.ones(len(tokens), dtype=torch.int64)
        batch.session.commit(ones)
        _, token = batch.limit_thinking(tokens[:, None], torch.zeros_like(ones), following[:, 0])
        batch.commit_cycle(tokens[:, None], ones, torch.zeros_like(ones), token)
        tokens = batch.next_tokens(token)


@dataclass(frozen=True)
class NextToken:
    """A `forwards.Body`: from the last token int64 `[a, 1]` of each sequence to the next one, int64 `[a, 1]`."""

    shaping: Shaping

    def __call__(self, forwards: Forwards, tokens: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, ...]:
        """See `forwards.Body`."""
        logits = forwards.causal(tokens, torch.ones_like(tokens[:, 0]))
        return (self.shaping.draw(logits, numbers).to(tokens.device),)
