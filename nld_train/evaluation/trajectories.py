"""Denoises blocks until no mask is left, under a policy, by forwards that do not count in any figure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nld_train.decoding.policies.commit import BlockView, CommitPolicy, chosen_positions
from nld_train.decoding.policies.fixed_number import FixedNumber

# One token per pass, the most confident first: the reference of the oracle and the trained sampler.
ONE_PER_PASS = FixedNumber(1)


def next_view(view: BlockView, tokens: Tensor, masked: Tensor) -> BlockView:
    """The view after a denoising pass over other tokens.

    Runs one uncounted forward. The sampled tokens are the argmax, without a temperature.

    Args:
        view: the same blocks before the pass.
        tokens: int64 `[d, T]`.
        masked: bool `[d, T]`.
    """
    logits = view.forward_uncounted(tokens)
    sampled = logits.argmax(-1).cpu()
    return replace(
        view, tokens=tokens, masked=masked, read_logits=lambda: logits, sampled=sampled, passes=view.passes + 1
    )


def committed(view: BlockView, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and masks `[d, T]` after the sampled tokens at the positions of bool `[d, T]` `chosen` are committed."""
    return torch.where(chosen, view.sampled, view.tokens), view.masked & ~chosen


def restrict(view: BlockView, rows: Tensor) -> BlockView:
    """The view in which only the rows of bool `[d]` `rows` have masks."""
    return replace(view, masked=view.masked & rows[:, None])


@dataclass(frozen=True)
class DenoisedBlocks:
    """Blocks that have been denoised completely.

    Attributes:
        tokens: int64 `[d, T]`.
        passes: int64 `[d]`, denoising passes, including the one whose result the first view was.
    """

    tokens: Tensor
    passes: Tensor


def denoise(view: BlockView, policy: CommitPolicy) -> DenoisedBlocks:
    """Denoises the blocks of a view until no mask is left, by uncounted forwards."""
    passes = torch.zeros_like(view.passes)
    while bool(view.masked.any()):
        chosen = chosen_positions(policy, view)
        passes += chosen.any(1)
        tokens, masked = committed(view, chosen)
        if not bool(masked.any()):
            return DenoisedBlocks(tokens, passes)
        view = next_view(view, tokens, masked)
    return DenoisedBlocks(view.tokens, passes)
