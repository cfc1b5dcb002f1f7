"""The loss of the drafter adapter (reference section 7), and which drafts it is averaged over.

A block is `[seed, d_1 .. d_{B-1}]`. Draft d_j comes from the draft logits z^d of row j; the AR logits z^t that judge it
are those of the causal row before it, conditioned on the seed and d_1 .. d_{j-1}. With q = softmax(z^d / T) and
p = softmax(z^t / T), both over the union of their likeliest tokens,

    L_LK = lambda KL(p || q) + (1 - lambda) TV(p, q),   lambda = exp(-0.5 stopgrad(sum min(p, q)))

plus the cross-entropy at temperature 1, inside that set, to the AR argmax. No gradient goes through p.

**Accepted**, here: a draft is accepted if it equals the AR argmax, and all drafts before it in its block were. That is
the reference's rule of linear self-speculation ("accept the longest prefix whose AR prediction equals the draft"), and
the only one under which its "first mismatch" is a token. It holds for sampled drafts as for greedy ones: they are drawn
so that the adapter sees prefixes it would not have chosen, not because decoding would accept them with probability p/q.

**Averaged**, here: each block's loss is the mean over its accepted drafts and its first mismatch, and the loss of an
optimizer step is the mean over all blocks of the global batch that have a draft. Parallel layout and micro-batches do
not matter to it: the number of blocks is known before any forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.losses.vocabulary import VocabularyShard

# Columns of `row_losses`.
LOSS, KL, TV, CROSS_ENTROPY = range(4)


@dataclass(frozen=True)
class Acceptance:
    """What became of the drafts of some blocks.

    Attributes:
        accepted: int64 `[blocks]`, accepted drafts of each.
        scored: int64 `[n]`, the drafts that enter the loss: indices into all of them.
        weights: float32 `[n]`, one over the number of scored drafts of the block.
    """

    accepted: Tensor
    scored: Tensor
    weights: Tensor


def accept(blocks: Tensor, steps: Tensor, held: Tensor, block_count: int, block_length: int) -> Acceptance:
    """Finds each block's accepted prefix and its first mismatch.

    Args:
        blocks: int64 `[m]`, number of each draft's block, 0 .. block_count - 1.
        steps: int64 `[m]`, place of each draft in its block, from 1, without gaps.
        held: bool `[m]`, whether it equals the AR argmax.
        block_count: number of blocks.
        block_length: B.
    """
    grid = torch.zeros(block_count, block_length, dtype=torch.int64, device=held.device)
    grid[:, 0] = 1  # the seed
    grid[blocks, steps] = held.long()
    accepted = grid.cumprod(1).sum(1) - 1
    scored = (steps <= accepted[blocks] + 1).nonzero().squeeze(1)
    counts = torch.zeros_like(accepted).index_add_(0, blocks[scored], torch.ones_like(scored))
    return Acceptance(accepted, scored, counts[blocks[scored]].float().reciprocal())


def row_losses(vocabulary: VocabularyShard, draft: Tensor, verdict: Tensor, temperature: float, top_k: int) -> Tensor:
    """The loss of each draft and its parts.

    Args:
        vocabulary: how the columns are cut.
        draft: z^d, this rank's logits `[m, V / tensor]`, with gradients.
        verdict: z^t, the same.
        temperature: T.
        top_k: likeliest tokens of p and of q.

    Returns:
        float32 `[m, 4]`: L_LK plus cross-entropy, KL, TV, cross-entropy; the same on every tensor-parallel rank.
    """
    draft, verdict = vocabulary.allowed(draft), vocabulary.allowed(verdict.detach())
    tokens = torch.cat([vocabulary.top(verdict, top_k), vocabulary.top(draft.detach(), top_k)], dim=-1).sort(-1).values
    repeated = torch.zeros_like(tokens, dtype=torch.bool)
    repeated[:, 1:] = tokens[:, 1:] == tokens[:, :-1]
    return candidate_losses(vocabulary.at(draft, tokens), vocabulary.at(verdict, tokens), ~repeated, temperature)


def candidate_losses(draft: Tensor, verdict: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """As `row_losses`, over a set of candidate tokens.

    Args:
        draft: z^d, float32 `[m, n]`, with gradients.
        verdict: z^t, float32 `[m, n]`.
        counted: bool `[m, n]`, the set.
        temperature: T.
    """
    log_q = _log_softmax(draft / temperature, counted)
    log_p = _log_softmax(verdict.detach() / temperature, counted)
    # Outside the set both are 0, and so is every term below.
    p, q = log_p.exp().where(counted, 0.0), log_q.exp().where(counted, 0.0)
    kl = (p * (log_p - log_q)).sum(-1)
    tv = 0.5 * (p - q).abs().sum(-1)
    mixture = torch.exp(-0.5 * torch.minimum(p, q).sum(-1).detach())
    best = verdict.masked_fill(~counted, float("-inf")).argmax(-1, keepdim=True)
    cross_entropy = -_log_softmax(draft, counted).gather(-1, best).squeeze(-1)
    return torch.stack([mixture * kl + (1 - mixture) * tv + cross_entropy, kl, tv, cross_entropy], dim=-1)


def _log_softmax(logits: Tensor, counted: Tensor) -> Tensor:
    """Over the set; 0 outside of it, which keeps infinities out of products and gradients."""
    return logits.masked_fill(~counted, float("-inf")).log_softmax(-1).masked_fill(~counted, 0.0)
