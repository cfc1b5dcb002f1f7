"""Operations on vocabulary-parallel logits: most likely tokens, the logits of given tokens, and sampling.

Every tensor-parallel rank gets the same results: they are computed from all-gathered values, which have the same bits
everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nld_train.collectives import all_gather, require_contiguous


class VocabularyShard:
    """This rank's columns of the logits.

    Args:
        vocab_size: size before padding to a multiple of the tensor-parallel size.
        mask_token_id: excluded from all predictions (docs/method.md, "Decoding").
    """

    def __init__(self, vocab_size: int, mask_token_id: int) -> None:
        from megatron.core import parallel_state

        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self._group = parallel_state.get_tensor_model_parallel_group()
        self._rank = parallel_state.get_tensor_model_parallel_rank()
        self._ranks = parallel_state.get_tensor_model_parallel_world_size()

    def allowed(self, logits: Tensor) -> Tensor:
        """`[m, V / tensor]` in float32, minus infinity at padding and at the mask token."""
        columns = torch.arange(logits.shape[-1], device=logits.device) + self._first(logits)
        excluded = (columns >= self.vocab_size) | (columns == self.mask_token_id)
        return logits.float().masked_fill(excluded, float("-inf"))

    @torch.no_grad()
    def top(self, logits: Tensor, count: int) -> Tensor:
        """The most likely tokens of each row, best first: int64 `[m, min(count, vocab_size - 1)]`.

        Args:
            logits: from `allowed`.
            count: how many; the mask token and padding are never among them.
        """
        values, columns = logits.topk(min(count, logits.shape[-1]), dim=-1)
        values, tokens = self._all_gather(values), self._all_gather(columns + self._first(logits))
        best = values.topk(min(count, self.vocab_size - 1), dim=-1).indices
        return tokens.gather(-1, best)

    def at(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Logits `[m, n]` of tokens int64 `[m, n]`, with gradients."""
        from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region

        columns = tokens - self._first(logits)
        on_rank = (columns >= 0) & (columns < logits.shape[-1])
        values = logits.gather(-1, columns.clamp(0, logits.shape[-1] - 1)).masked_fill(~on_rank, 0.0)
        if self._ranks == 1:
            return values
        whole: Tensor = reduce_from_tensor_model_parallel_region(require_contiguous(values))
        return whole

    @torch.no_grad()
    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Samples a token of each row at temperature 1, by inversion of the cumulative distribution.

        Args:
            logits: from `allowed`.
            uniform: float64 `[m]` in [0, 1); float64, so that all layouts draw the same tokens.

        Returns:
            int64 `[m]`.
        """
        highest = self._all_gather(logits.amax(-1, keepdim=True)).amax(-1, keepdim=True)
        cumulative = (logits - highest).double().exp().cumsum(-1)
        masses = self._all_gather(cumulative[:, -1:]).cumsum(-1)
        threshold = uniform[:, None] * masses[:, -1:]
        owner = torch.searchsorted(masses, threshold, right=True).clamp(max=self._ranks - 1)
        before = torch.cat([torch.zeros_like(threshold), masses], dim=-1).gather(-1, torch.full_like(owner, self._rank))
        columns = torch.searchsorted(cumulative, threshold - before, right=True).clamp(max=logits.shape[-1] - 1)
        tokens = self._all_gather(columns + self._first(logits))
        return tokens.gather(-1, owner).squeeze(-1)

    def _first(self, logits: Tensor) -> int:
        """The rank's first column."""
        return int(self._rank * logits.shape[-1])

    def _all_gather(self, part: Tensor) -> Tensor:
        """Concatenates the ranks' `[m, n]` in the order of their columns: `[m, n * tensor]`."""
        if self._ranks == 1:
            return part
        return torch.cat(all_gather(part.contiguous(), self._group), dim=-1)
