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
        body = DraftAndVerify(batch.sampling.shaping, length, batch.mask_token_id, batch.options.adapter)
        needed = torch.cat([block_masks(sizes, length), needed_numbers(sizes, length)], 1)
        inputs = {"seeds": seeds, "sizes": sizes, **batch.sampling.numbers(needed)}
        drafting = [sizes > 1] if body.drafts else []
        (found,) = batch.session.cycle(body, length, inputs, counted=[*drafting, None])
        accepted, bonus = found[:, length], found[:, length + 1]
        batch.session.commit(1 + accepted)
        batch.commit_cycle(found[:, :length], sizes, accepted, bonus)
        seeds = batch.next_tokens(bonus)


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
