"""Linear self-speculation: draft a block in one bidirectional pass, verify it in one causal pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.forwards import Forwards
from nld_train.decoding.algorithms.sampling import Shaping
from nld_train.decoding.algorithms.verification import Drafts, block_masks, needed_numbers, verify


def decode_linear(batch: Batch) -> None:
    """Decodes all sequences, 1 to B tokens per 2 forwards, as AR decoding would (`docs/method.md`, "Decoding")."""
    seeds = batch.next_tokens(batch.prefill_first_tokens(batch.slots))
    while batch.session.active:
        sizes = batch.remaining().clamp(max=batch.options.block_length)
        length = batch.step_length(sizes)
        in_passes = batch.options.draft_threshold > 0 and length > 1
        found = (_in_several_passes if in_passes else _in_one_pass)(batch, seeds, sizes, length)
        accepted, bonus = batch.limit_thinking(found[:, :length], found[:, length], found[:, length + 1])
        batch.session.commit(1 + accepted)
        batch.commit_cycle(found[:, :length], sizes, accepted, bonus)
        seeds = batch.next_tokens(bonus)


def _in_one_pass(batch: Batch, seeds: Tensor, sizes: Tensor, length: int) -> Tensor:
    """A cycle of two forwards; see `DraftAndVerify`."""
    body = DraftAndVerify(batch.sampling.shaping, length, batch.mask_token_id, batch.options.adapter)
    needed = torch.cat([block_masks(sizes, length), needed_numbers(sizes, length)], 1)
    inputs = {"seeds": seeds, "sizes": sizes, **batch.sampling.numbers(needed)}
    drafting = [sizes > 1] if body.drafts else []
    (found,) = batch.session.cycle(body, length, inputs, counted=[*drafting, None])
    return found


def _in_several_passes(batch: Batch, seeds: Tensor, sizes: Tensor, length: int) -> Tensor:
    """As `_in_one_pass`, but a drafting pass commits drafts by `draft_threshold`, and the next one sees them."""
    options, masked = batch.options, block_masks(sizes, length)
    tokens = torch.full((len(seeds), length), batch.mask_token_id)
    tokens[:, 0] = seeds
    body = DraftingPass(options.draft_threshold, options.adapter)
    while bool(masked.any()):
        inputs = {"tokens": tokens, "sizes": sizes, "masked": masked}
        (found,) = batch.session.cycle(body, length, inputs, counted=[masked.any(1)])
        tokens, masked = found[:, :length], found[:, length:].bool()
    (found,) = batch.session.cycle(Verification(batch.sampling.shaping), length, {"tokens": tokens, "sizes": sizes})
    return found


@dataclass(frozen=True)
class DraftingPass:
    """A `forwards.Body`: from blocks to blocks with more drafts, greedily.

    Inputs: int64 `[a, T]` tokens, int64 `[a]` sizes, bool `[a, T]` masked.
    Results: int64 `[a, 2 * T]`, the tokens, and 1 where they are still masked.
    """

    threshold: float
    adapter: bool

    def __call__(self, forwards: Forwards, tokens: Tensor, sizes: Tensor, masked: Tensor) -> tuple[Tensor, ...]:
        """See `forwards.Body`."""
        masked = masked.bool()
        found = forwards.read_only(tokens, sizes, adapter=self.adapter).softmax(-1).max(-1)
        confidence = found.values.to(tokens.device).masked_fill(~masked, -1.0)
        best = torch.arange(tokens.shape[1], device=tokens.device) == confidence.argmax(1, keepdim=True)
        chosen = masked & ((confidence >= self.threshold) | best)
        tokens = torch.where(chosen, found.indices.to(tokens.device), tokens)
        return (torch.cat([tokens, (masked & ~chosen).to(torch.int64)], 1),)


@dataclass(frozen=True)
class Verification:
    """A `forwards.Body`: from drafted blocks, int64 `[a, T]` and `[a]` sizes, to the results of `DraftAndVerify`."""

    shaping: Shaping

    def __call__(self, forwards: Forwards, tokens: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """See `forwards.Body`."""
        accepted, bonus = verify(self.shaping, Drafts(tokens, sizes, None), forwards.causal(tokens, sizes))
        return (torch.cat([tokens, accepted[:, None], bonus[:, None]], 1),)


@dataclass(frozen=True)
class DraftAndVerify:
    """A `forwards.Body`: from the seeds int64 `[a]` and sizes int64 `[a]` of blocks to their tokens, verified.

    Results: int64 `[a, T + 2]`, the block's tokens, the number of accepted drafts, and the bonus token.
    """

    shaping: Shaping
    length: int
    mask_token_id: int
    adapter: bool

    @property
    def drafts(self) -> bool:
        """With one token left in every sequence there is nothing to draft."""
        return self.length > 1

    def __call__(
        self, forwards: Forwards, seeds: Tensor, sizes: Tensor, numbers: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """See `forwards.Body`."""
        drawing, verifying = (None, None) if numbers is None else numbers.tensor_split(2, dim=1)
        drafts = self._draft(forwards, seeds, sizes, drawing)
        target_logits = forwards.causal(drafts.tokens, sizes)
        accepted, bonus = verify(self.shaping, drafts, target_logits, verifying)
        return (torch.cat([drafts.tokens, accepted[:, None], bonus[:, None]], 1),)

    def _draft(self, forwards: Forwards, seeds: Tensor, sizes: Tensor, numbers: Tensor | None) -> Drafts:
        """Blocks `[seed, MASK x (size - 1)]` filled in one pass."""
        tokens = torch.full((len(seeds), self.length), self.mask_token_id, device=seeds.device)
        tokens[:, 0] = seeds
        if not self.drafts:
            return Drafts(tokens, sizes, None)
        logits = forwards.read_only(tokens, sizes, adapter=self.adapter)
        drawn = self.shaping.draw(logits, numbers).to(tokens.device)
        return Drafts(torch.where(block_masks(sizes, self.length), drawn, tokens), sizes, logits)
