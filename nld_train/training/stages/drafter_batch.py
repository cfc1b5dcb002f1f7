"""From a batch of samples to the blocks that a drafter is trained on, and the three forward passes over them.

All blocks of all samples are drafted at once. In the noisy stream stand their seeds and masks, then their seeds and
drafts; the clean stream holds the real text, of which each block sees what lies before it (`masking.visibility`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nld_train.config.schema import AdapterConfig
from nld_train.masking.drafting import draw_drafts
from nld_train.masking.layout import StreamLayout
from nld_train.model import streams
from nld_train.model.ministral3 import Readout
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import LossFunction
from nld_train.training.loop.micro_batch import Samples


@dataclass(frozen=True)
class DrafterSettings:
    """What turns samples into blocks: the same for every micro-batch of a stage."""

    adapter: AdapterConfig
    stage: str
    seed: int
    vocab_size: int
    mask_token_id: int
    chunk_rows: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Pass:
    """One forward pass over a micro-batch.

    Attributes:
        tokens: int64 `[b, S]`.
        handle: finds the `StreamContext`.
        rows: int64 `[n]`, indices into the flattened `[S * b]` hidden states.
        readout: what is made of those rows.
        loss: what makes a loss of that; None for a pass without gradients.
    """

    tokens: Tensor
    handle: Tensor
    rows: Tensor
    readout: Readout
    loss: LossFunction | None = None


@dataclass(frozen=True)
class DraftBlocks:
    """The blocks of one micro-batch that have a seed and a draft.

    A block at the very start of a document has no text before it, so no AR prediction for a seed. It is left out, and
    so are blocks of which the document's end leaves nothing but the seed.

    Attributes:
        clean: int64 `[b, L]`, real text.
        layout: both streams, blocks in both directions.
        count: number of blocks.
        rows: int64 `[drafts]`, sample of each draft.
        places: int64 `[drafts]`, where it stands in its stream.
        blocks: int64 `[drafts]`, its block, 0 .. count - 1.
        steps: int64 `[drafts]`, its place in the block, from 1.
        greedy: bool `[drafts]`, whether it is the likeliest token instead of a sampled one.
        uniform: float64 `[drafts]`, what it is sampled with.
    """

    clean: Tensor
    layout: StreamLayout
    count: int
    rows: Tensor
    places: Tensor
    blocks: Tensor
    steps: Tensor
    greedy: Tensor
    uniform: Tensor

    @property
    def first(self) -> Tensor:
        """Bool `[drafts]`, the first draft of each block: its seed stands one place before it."""
        return self.steps == 1

    def noisy(self, seeds: Tensor, drafts: Tensor | None, mask_token_id: int) -> Tensor:
        """The noisy stream int64 `[b, L]`: seeds and, where there are none yet, masks for drafts; masks elsewhere.

        Args:
            seeds: int64 `[count]`.
            drafts: int64 `[drafts]`, or None.
            mask_token_id: of the model.
        """
        tokens = torch.full_like(self.clean, mask_token_id)
        tokens[self.rows[self.first], self.places[self.first] - 1] = seeds.cpu()
        if drafts is not None:
            tokens[self.rows, self.places] = drafts.cpu()
        return tokens


def draft_blocks(samples: Samples, settings: DrafterSettings) -> DraftBlocks:
    """The blocks of a micro-batch with `tokens`, `documents` `[b, L+1]`, `sample_index` `[b]`, see `data.samples`."""
    clean, documents = samples["tokens"][:, :-1].cpu(), samples["documents"][:, :-1]
    adapter, length = settings.adapter, clean.shape[1]
    draws = [
        draw_drafts(settings.seed, settings.stage, sample_index, length, adapter.block_size, adapter.greedy_share)
        for sample_index in samples["sample_index"].tolist()
    ]
    offsets = np.array([draw.offset for draw in draws])[:, None]
    layout = StreamLayout.of(documents, adapter.block_size, True, offsets)
    places = torch.arange(length).expand(clean.shape)
    begins = torch.ones_like(layout.blocks, dtype=torch.bool)
    begins[:, 1:] = layout.blocks.diff(dim=1) > 0
    start = torch.where(begins, places, 0).cummax(dim=1).values
    drafted = (layout.positions.gather(1, start) > 0) & ~begins
    row, place = drafted.nonzero(as_tuple=True)
    steps = place - start[row, place]
    greedy = torch.from_numpy(np.stack([draw.greedy for draw in draws]))
    uniform = torch.from_numpy(np.stack([draw.uniform for draw in draws]))
    return DraftBlocks(
        clean=clean,
        layout=layout,
        count=int((steps == 1).sum()),
        rows=row,
        places=place,
        blocks=(steps == 1).cumsum(0) - 1,
        steps=steps,
        greedy=greedy[row, layout.blocks[row, place]],
        uniform=uniform[row, place],
    )


def seed_pass(blocks: DraftBlocks, readout: Readout, settings: DrafterSettings, rotary: RotaryEmbedding) -> Pass:
    """The AR pass over the real text, read before each block's start: the next token is the block's seed."""
    alone = StreamLayout(blocks.layout.documents, blocks.layout.positions, blocks.layout.blocks, two_streams=False)
    context = streams.StreamContext.of(alone, rotary, settings.dtype)
    rows, places = blocks.rows[blocks.first], blocks.places[blocks.first] - 2
    return _pass(blocks.clean, context, rows, places, readout, settings)


def draft_pass(
    blocks: DraftBlocks,
    seeds: Tensor,
    chosen: Tensor | None,
    readout: Readout,
    settings: DrafterSettings,
    rotary: RotaryEmbedding,
) -> Pass:
    """The draft of all blocks, adapter on in the noisy stream; read at the drafts, or at `chosen` ones of them."""
    context = streams.StreamContext.of(blocks.layout, rotary, settings.dtype, adapt_noisy=True)
    tokens = torch.cat([blocks.noisy(seeds, None, settings.mask_token_id), blocks.clean], dim=1)
    rows, places = (blocks.rows, blocks.places) if chosen is None else (blocks.rows[chosen], blocks.places[chosen])
    return _pass(tokens, context, rows, places, readout, settings)


def verify_pass(
    blocks: DraftBlocks,
    seeds: Tensor,
    drafts: Tensor,
    readout: Readout,
    settings: DrafterSettings,
    rotary: RotaryEmbedding,
) -> Pass:
    """The AR verdict on all drafts, adapter off, blocks causal; read before each draft."""
    layout = StreamLayout(
        blocks.layout.documents, blocks.layout.positions, blocks.layout.blocks, two_streams=True, causal_blocks=True
    )
    context = streams.StreamContext.of(layout, rotary, settings.dtype)
    tokens = torch.cat([blocks.noisy(seeds, drafts, settings.mask_token_id), blocks.clean], dim=1)
    return _pass(tokens, context, blocks.rows, blocks.places - 1, readout, settings)


def _pass(
    tokens: Tensor,
    context: streams.StreamContext,
    rows: Tensor,
    places: Tensor,
    readout: Readout,
    settings: DrafterSettings,
) -> Pass:
    """Read at places of the first stream of `[S * b]`."""
    return Pass(
        tokens=tokens.to(settings.device),
        handle=streams.register(context),
        rows=(places * len(tokens) + rows).to(settings.device),
        readout=readout,
    )
