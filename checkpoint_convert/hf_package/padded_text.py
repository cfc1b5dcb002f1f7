"""Streams and visibility of a batch in the conventions of `transformers`: padding masks and position ids.

The visibility rule is `visible`, as in training; only padding is added here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoint_convert.hf_package.attention import Rule
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import Coordinates, coordinates, visible


@dataclass(frozen=True)
class PaddedText:
    """A batch of padded or packed texts. Tensors are on the model's device.

    Attributes:
        real: bool `[b, L]`, False for padding.
        layout: documents, positions and blocks of the clean stream.
    """

    real: Tensor
    layout: StreamLayout

    @classmethod
    def of(
        cls, attention_mask: Tensor | None, position_ids: Tensor | None, tokens: Tensor, block_size: int
    ) -> PaddedText:
        """From the arguments of `forward`.

        Args:
            attention_mask: `[b, L]`, 0 at padding; None for no padding.
            position_ids: int64 `[b, L]` or `[1, L]`; a new document begins where they do not grow by one, so that
                several can be packed in a row. None counts the real tokens of each row, which is then one document.
            tokens: `[b, L]`.
            block_size: tokens per block, counted from each document's start.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if position_ids is None:
            positions = (real.long().cumsum(1) - 1).clamp(min=0)
            documents, blocks = torch.zeros_like(positions), positions // block_size
        else:
            positions = position_ids.expand_as(tokens)
            starts = F.pad(positions[:, 1:] != positions[:, :-1] + 1, (1, 0), value=True)
            documents = starts.long().cumsum(1) - 1
            blocks = StreamLayout.of(documents, block_size, two_streams=False).blocks.to(tokens.device)
        return cls(real, StreamLayout(documents, positions, blocks, two_streams=False))

    @property
    def plain(self) -> bool:
        """No padding and no document borders."""
        return bool(self.real.all()) and not bool(self.layout.documents.any())

    def two_streams(self) -> PaddedText:
        """The same texts as `[noisy | clean]`; `real` becomes `[b, 2L]`."""
        return PaddedText(torch.cat([self.real, self.real], 1), replace(self.layout, two_streams=True))

    def rule(self) -> Rule:
        """Visibility in training: of a causal stream, or of the noisy and the clean stream."""
        return self._rule(coordinates(self.layout))

    def last_block_rule(self, block_length: int) -> Rule:
        """Visibility in decoding: the last `block_length` real tokens of each row are one noisy block."""
        in_block = self.real.long().flip(1).cumsum(1).flip(1) <= block_length
        return self._rule(coordinates(self.layout)._replace(noisy=in_block, block=in_block.long()))

    def _rule(self, tokens: Coordinates) -> Rule:
        """`visible`, with padding that is visible only to itself, which keeps its softmax finite."""
        real = self.real

        def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            of_query, of_key = (Coordinates(*(field[row, index] for field in tokens)) for index in (query, key))
            return (visible(of_query, of_key) & real[row, key]) | (query == key)

        return rule
