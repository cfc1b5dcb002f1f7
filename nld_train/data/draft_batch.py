"""Micro-batches of a drafter stage in host memory (docs/method.md, "Drafter adapter").

The blocks that an adapter is trained on, and where each token of them is read and written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nld_train.data.collate import Samples, layout_tensors, stack
from nld_train.data.flat_buffer import FlatBuffer
from nld_train.errors import UserError
from nld_train.masking.drafting import draft_stream, draw_drafts
from nld_train.masking.layout import StreamLayout


@dataclass(frozen=True)
class DraftBatch:
    """The blocks of one micro-batch that have a seed and a draft.

    A block at the start of a document has no text before it, and so no AR prediction for a seed: it is left out, as are
    blocks that the end of the sample cuts to the seed alone.

    Attributes:
        tensors: `clean` int64 `[b, L]`, the text; the layout of both streams, blocks in both directions, see
            `data.collate.layout_tensors`; for each block, `[count]`:

            - `seed_indices` int64, index of its seed in the flattened noisy stream `[b * N]`;
            - `seed_rows` int64, row of the flattened hidden states `[L * b]` of the text that predicts its seed;
            - `greedy` bool, whether its drafts are the most likely tokens instead of sampled ones;

            for each draft, `[drafts]`:

            - `indices` int64, its index in the flattened noisy stream `[b * N]`;
            - `rows` int64, its row of the flattened hidden states `[(N + L) * b]` of both streams;
            - `blocks_of_drafts` int64, its block, 0 .. count - 1;
            - `steps` int64, its index in the block, from 1; the seed has index 0;
            - `uniform` float64, the number in [0, 1) that it is sampled with, negative where its block is greedy.
        count: number of blocks.
        drafts: number of drafts.
    """

    tensors: FlatBuffer
    count: int
    drafts: int

    @property
    def noisy_length(self) -> int:
        """N, tokens of the noisy stream."""
        return self.tensors["blocks"].shape[1]

    def pin_memory(self) -> DraftBatch:
        """The same in page-locked memory; torch's data loader calls it."""
        return replace(self, tensors=self.tensors.pin_memory())


@dataclass(frozen=True)
class DraftCollator:
    """Makes micro-batches of samples: the `collate` of the data loader. It is sent to the loader's processes.

    Attributes:
        block_size: B, seed included.
        greedy_share: probability that a block is drafted greedily.
        stage: name of the stage.
        seed: of the run.
        noisy_length: N, the tokens of all blocks of a sample; None for as many as it has in the clean stream.
    """

    block_size: int
    greedy_share: float
    stage: str
    seed: int
    noisy_length: int | None

    def __call__(self, samples: list[dict[str, Any]]) -> DraftBatch:
        """The micro-batch of some samples."""
        return self.of(stack(samples))

    def of(self, samples: Samples) -> DraftBatch:
        """The micro-batch of stacked samples.

        Args:
            samples: `tokens`, `documents` `[b, L+1]` and `sample_index` `[b]`, see `data.samples`. Conversations have
                `answers` `[b, L+1]`, and blocks inside of these alone (`masking.drafting`).

        Raises:
            UserError: the samples have pictures.
        """
        clean, documents = samples["tokens"][:, :-1], samples["documents"].numpy()
        if len(samples.get("pictures", ())):
            raise UserError(
                f"stages.{self.stage}.kind=drafter: the data has pictures, with which no drafter adapter is trained; "
                "name conversations without"
            )
        answers = samples["answers"].numpy() if "answers" in samples else [None] * len(clean)
        length = clean.shape[1] if self.noisy_length is None else self.noisy_length
        draws = [
            draw_drafts(self.seed, self.stage, index, max(length, clean.shape[1]), self.greedy_share)
            for index in samples["sample_index"].tolist()
        ]
        noisy = [draft_stream(*each, self.block_size, length) for each in zip(documents, answers, draws, strict=True)]
        blocks, begins, real = (
            torch.from_numpy(np.stack([getattr(stream, name) for stream in noisy]))
            for name in ("blocks", "begins", "maskable")
        )
        layout = StreamLayout.of_clean(samples["documents"][:, :-1]).with_noisy(blocks, begins)
        greedy, uniform = (
            torch.from_numpy(np.stack([getattr(draw, name) for draw in draws])) for name in ("greedy", "uniform")
        )
        tensors = {"clean": clean, **layout_tensors(layout), **_drafts(layout, real, greedy, uniform)}
        return DraftBatch(FlatBuffer.of(tensors), len(tensors["seed_rows"]), len(tensors["rows"]))


def _drafts(layout: StreamLayout, real: Tensor, greedy: Tensor, uniform: Tensor) -> dict[str, Tensor]:
    """The tensors of blocks and drafts.

    Args:
        layout: of both streams.
        real: bool `[b, N]`, all but inert tokens.
        greedy: bool `[b, n]`, by index of the block.
        uniform: float64 `[b, n]`, by index in the noisy stream.
    """
    assert layout.noisy is not None
    blocks, begins = layout.noisy.blocks, layout.noisy.begins
    batch, length = blocks.shape
    indices = torch.arange(length).expand(blocks.shape)
    is_seed = torch.ones_like(blocks, dtype=torch.bool)
    is_seed[:, 1:] = blocks.diff(dim=1) > 0
    start = torch.where(is_seed, indices, 0).cummax(dim=1).values
    drafted = real & (layout.positions.gather(1, begins) > 0) & ~is_seed
    row, index = drafted.nonzero(as_tuple=True)
    steps = index - start[row, index]
    first = steps == 1
    is_greedy = greedy[row, blocks[row, index]]
    return {
        "seed_indices": (row * length + index - 1)[first],
        "seed_rows": ((begins[row, index] - 1) * batch + row)[first],
        "greedy": is_greedy[first],
        "indices": row * length + index,
        "rows": index * batch + row,
        "blocks_of_drafts": first.cumsum(0) - 1,
        "steps": steps,
        "uniform": torch.where(is_greedy, -1.0, uniform[row, index]),
    }
