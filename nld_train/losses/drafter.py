"""The loss of the drafter adapter, and which drafts it is averaged over (docs/method.md, "Drafter adapter").

A block is `[seed, d_1 .. d_{B-1}]`. Draft d_j comes from the draft logits z^d of row j; the target logits z^t that
verify it are those of the causal row before it, conditioned on the seed and d_1 .. d_{j-1}. With q = softmax(z^d / T)
and p = softmax(z^t / T), both over the union of their most likely tokens,

    L_LK = lambda KL(p || q) + (1 - lambda) TV(p, q),   lambda = exp(-0.5 stopgrad(sum min(p, q)))

plus the cross-entropy at temperature 1, inside that set, to the AR argmax. No gradient goes through p.

**Acceptance**: a draft is accepted if it equals the AR argmax and all drafts before it in its block are accepted. That
is the rule of linear self-speculation (the longest prefix whose AR predictions equal the drafts), and the only one
under which the first mismatch is a token. The same rule applies to sampled drafts: they are sampled so that the adapter
is trained on prefixes that it would not choose itself, not to be accepted with probability p / q.

**Averaging**: a block's loss is the mean over its accepted drafts and its first mismatch; the loss of an optimizer step
is the mean over all blocks of the global batch that have a draft. It depends neither on the parallel layout nor on
micro-batches: the number of blocks is known before any forward pass.
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
    """The result of verifying the drafts of some blocks.

    Attributes:
        accepted: int64 `[blocks]`, accepted drafts of each.
        is_scored: bool `[m]`, whether a draft enters the loss.
        weights: float32 `[m]`, one over the number of scored drafts of its block.
    """

    accepted: Tensor
    is_scored: Tensor
    weights: Tensor

    def scored(self, count: int) -> Tensor:
        """int64 `[count]`, the indices of the drafts that enter the loss, in their order.

        Args:
            count: their number. The host has to know it before it can know the shapes of what follows, so it is read
                back for all micro-batches at once; `nonzero` would wait for the device in each of them.
        """
        index = torch.arange(len(self.is_scored), device=self.is_scored.device)
        # All others are written to one more element at the end.
        element = torch.where(self.is_scored, self.is_scored.cumsum(0) - 1, count)
        return index.new_zeros(count + 1).scatter_(0, element, index)[:count]


def accept(blocks: Tensor, steps: Tensor, matches: Tensor, block_count: int, block_size: int) -> Acceptance:
    """Finds each block's accepted prefix and its first mismatch.

    Args:
        blocks: int64 `[m]`, index of each draft's block, 0 .. block_count - 1.
        steps: int64 `[m]`, index of each draft in its block, from 1, without gaps.
        matches: bool `[m]`, whether it equals the AR argmax.
        block_count: number of blocks.
        block_size: B, seed included.
    """
    grid = torch.zeros(block_count, block_size, dtype=torch.int64, device=matches.device)
    grid[:, 0] = 1  # the seed
    grid[blocks, steps] = matches.long()
    accepted = grid.cumprod(1).sum(1) - 1
    is_scored = steps <= accepted[blocks] + 1
    counts = torch.zeros_like(accepted).index_add_(0, blocks, is_scored.long())
    return Acceptance(accepted, is_scored, counts[blocks].float().reciprocal())


def row_losses(
    vocabulary: VocabularyShard, draft_logits: Tensor, target_logits: Tensor, temperature: float, top_k: int
) -> Tensor:
    """The loss of each draft and its parts.

    Args:
        vocabulary: this rank's shard of the vocabulary.
        draft_logits: z^d, this rank's `[m, V / tensor]`, with gradients.
        target_logits: z^t, this rank's `[m, V / tensor]`; no gradient goes through them.
        temperature: T.
        top_k: the set is the union of the `top_k` most likely tokens of p and of q.

    Returns:
        float32 `[m, 4]`: L_LK plus cross-entropy, KL, TV, cross-entropy; the same on every tensor-parallel rank.
    """
    draft_logits, target_logits = vocabulary.allowed(draft_logits), vocabulary.allowed(target_logits.detach())
    most_likely = [vocabulary.top(target_logits, top_k), vocabulary.top(draft_logits.detach(), top_k)]
    tokens = torch.cat(most_likely, dim=-1).sort(-1).values
    repeated = torch.zeros_like(tokens, dtype=torch.bool)
    repeated[:, 1:] = tokens[:, 1:] == tokens[:, :-1]
    return candidate_losses(
        vocabulary.at(draft_logits, tokens), vocabulary.at(target_logits, tokens), ~repeated, temperature
    )


def candidate_losses(draft_logits: Tensor, target_logits: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """`row_losses` over a given set of candidate tokens.

    Args:
        draft_logits: z^d, float32 `[m, n]`, with gradients.
        target_logits: z^t, float32 `[m, n]`.
        candidates: bool `[m, n]`, the set.
        temperature: T.
    """
    log_q = _log_softmax(draft_logits / temperature, candidates)
    log_p = _log_softmax(target_logits.detach() / temperature, candidates)
    # Outside the set both are 0, and so is every term below.
    p, q = log_p.exp().where(candidates, 0.0), log_q.exp().where(candidates, 0.0)
    kl = (p * (log_p - log_q)).sum(-1)
    tv = 0.5 * (p - q).abs().sum(-1)
    mixture = torch.exp(-0.5 * torch.minimum(p, q).sum(-1).detach())
    best = target_logits.masked_fill(~candidates, float("-inf")).argmax(-1, keepdim=True)
    cross_entropy = -_log_softmax(draft_logits, candidates).gather(-1, best).squeeze(-1)
    return torch.stack([mixture * kl + (1 - mixture) * tv + cross_entropy, kl, tv, cross_entropy], dim=-1)


def _log_softmax(logits: Tensor, candidates: Tensor) -> Tensor:
    """Log-softmax over the set; 0 outside of it, which keeps infinities out of products and gradients."""
    return logits.masked_fill(~candidates, float("-inf")).log_softmax(-1).masked_fill(~candidates, 0.0)
