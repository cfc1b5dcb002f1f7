"""The blocks of a micro-batch that a drafter adapter is trained on (docs/method.md, "Drafter adapter")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nld_train.config.schema import AdapterConfig
from nld_train.masking.drafting import draft_stream, draw_drafts
from nld_train.masking.layout import StreamLayout
from nld_train.training.loop.micro_batch import Samples


@dataclass(frozen=True)
class DrafterSettings:
    """Settings that turn samples into blocks: the same for every micro-batch of a stage.

    `noisy_length` is N, the tokens of all blocks of a sample; None for as many as it has in the clean stream.
    """

    adapter: AdapterConfig
    stage: str
    seed: int
    vocab_size: int
    mask_token_id: int
    noisy_length: int | None
    chunk_rows: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class DraftBlocks:
    """The blocks of one micro-batch that have a seed and a draft.

    A block at the start of a document has no text before it, and so no AR prediction for a seed: it is left out, as are
    blocks that the end of the sample cuts to the seed alone.

    Attributes:
        clean: int64 `[b, L]`, the text.
        layout: both streams, blocks in both directions.
        count: number of blocks.
        begins: int64 `[count]`, index in the text at which each block begins, that of its seed.
        rows: int64 `[drafts]`, sample of each draft.
        indices: int64 `[drafts]`, its index in the noisy stream.
        blocks: int64 `[drafts]`, its block, 0 .. count - 1.
        steps: int64 `[drafts]`, its index in the block, from 1; the seed has index 0.
        greedy: bool `[drafts]`, whether it is the most likely token instead of a sampled one.
        uniform: float64 `[drafts]` in [0, 1), the number that it is sampled with.
    """

    clean: Tensor
    layout: StreamLayout
    count: int
    begins: Tensor
    rows: Tensor
    indices: Tensor
    blocks: Tensor
    steps: Tensor
    greedy: Tensor
    uniform: Tensor

    @property
    def first(self) -> Tensor:
        """Bool `[drafts]`, the first draft of each block: the seed is the token before it."""
        return self.steps == 1

    def noisy(self, seeds: Tensor, drafts: Tensor | None, mask_token_id: int) -> Tensor:
        """The noisy stream int64 `[b, N]`: seeds, drafts (masks where they are None), and masks elsewhere.

        Args:
            seeds: int64 `[count]`.
            drafts: int64 `[drafts]`, or None.
            mask_token_id: of the model.
        """
        tokens = self.clean.new_full((len(self.clean), self.layout.noisy_length), mask_token_id)
        tokens[self.rows[self.first], self.indices[self.first] - 1] = seeds.cpu()
        if drafts is not None:
            tokens[self.rows, self.indices] = drafts.cpu()
        return tokens


def draft_blocks(samples: Samples, settings: DrafterSettings) -> DraftBlocks:
    """The blocks of a micro-batch with `tokens`, `documents` `[b, L+1]`, `sample_index` `[b]`, see `data.samples`.

    Samples of conversations have `answers` `[b, L+1]`, and blocks inside of these alone (`masking.drafting`).
    """
    clean, documents = samples["tokens"][:, :-1].cpu(), samples["documents"].cpu().numpy()
    answers = samples["answers"].cpu().numpy() if "answers" in samples else [None] * len(clean)
    adapter, length = settings.adapter, clean.shape[1] if settings.noisy_length is None else settings.noisy_length
    draws = [
        draw_drafts(settings.seed, settings.stage, index, max(length, clean.shape[1]), adapter.greedy_share)
        for index in samples["sample_index"].tolist()
    ]
    noisy = [
        draft_stream(*sample, adapter.block_size, length) for sample in zip(documents, answers, draws, strict=True)
    ]
    blocks, begins, real = (
        torch.from_numpy(np.stack([getattr(stream, name) for stream in noisy]))
        for name in ("blocks", "begins", "maskable")
    )
    layout = StreamLayout.of_clean(samples["documents"][:, :-1]).with_noisy(blocks, begins)
    indices = torch.arange(length).expand(blocks.shape)
    is_seed = torch.ones_like(blocks, dtype=torch.bool)
    is_seed[:, 1:] = blocks.diff(dim=1) > 0
    start = torch.where(is_seed, indices, 0).cummax(dim=1).values
    drafted = real & (layout.positions.gather(1, begins) > 0) & ~is_seed
    row, index = drafted.nonzero(as_tuple=True)
    steps = index - start[row, index]
    greedy = torch.from_numpy(np.stack([draw.greedy for draw in draws]))
    uniform = torch.from_numpy(np.stack([draw.uniform for draw in draws]))
    return DraftBlocks(
        clean=clean,
        layout=layout,
        count=int((steps == 1).sum()),
        begins=begins[row, index][steps == 1],
        rows=row,
        indices=index,
        blocks=(steps == 1).cumsum(0) - 1,
        steps=steps,
        greedy=greedy[row, blocks[row, index]],
        uniform=uniform[row, index],
    )
