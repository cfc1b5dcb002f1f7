"""How a block is denoised to its end: what a policy would do from a given state, by forwards that nobody counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nld_train.decoding.policies.commit import BlockView, CommitPolicy, FixedNumber, chosen_positions

# One token per pass, the most confident first: what the oracle and the trained sampler take as the truth.
ONE_PER_PASS = FixedNumber(1)


def after(view: BlockView, tokens: Tensor, masked: Tensor) -> BlockView:
    """The blocks of a view in another state: int64 and bool `[d, T]`. Takes a forward, which is not counted.

    Sampled tokens are the argmax: looking ahead is greedy.
    """
    logits = view.forward_uncounted(tokens)
    sampled = logits.argmax(-1).cpu()
    return replace(view, tokens=tokens, masked=masked, logits=logits, sampled=sampled, passes=view.passes + 1)


def committed(view: BlockView, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and masks `[d, T]` after the positions of bool `[d, T]` `chosen` take their sampled tokens."""
    return torch.where(chosen, view.sampled, view.tokens), view.masked & ~chosen


def only(view: BlockView, rows: Tensor) -> BlockView:
    """The view with nothing to do in the rows outside bool `[d]` `rows`."""
    return replace(view, masked=view.masked & rows[:, None])


@dataclass(frozen=True)
class End:
    """Blocks that were followed to their end.

    Attributes:
        tokens: int64 `[d, T]`.
        passes: int64 `[d]`, denoising passes from the view on, the one that made the view included.
    """

    tokens: Tensor
    passes: Tensor


def follow(view: BlockView, policy: CommitPolicy) -> End:
    """What would become of the blocks of a view under a policy, by uncounted forwards."""
    passes = torch.zeros_like(view.passes)
    while bool(view.masked.any()):
        chosen = chosen_positions(policy, view)
        passes += chosen.any(1)
        tokens, masked = committed(view, chosen)
        if not bool(masked.any()):
            return End(tokens, passes)
        view = after(view, tokens, masked)
    return End(view.tokens, passes)
