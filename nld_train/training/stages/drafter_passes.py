"""The forward passes of a drafter stage, each over all blocks of a micro-batch at once.

The noisy stream consists of the blocks: seeds and masks in the draft pass, seeds and drafts in the verification pass.
The clean stream is the text, of which each block sees the part before it (`masking.visibility`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nld_train.model import streams
from nld_train.model.ministral3 import Readout
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import LossFunction
from nld_train.training.stages.drafter_batch import DraftBlocks, DrafterSettings


@dataclass(frozen=True)
class Pass:
    """One forward pass over a micro-batch.

    Attributes:
        tokens: int64 `[b, S]`.
        handle: finds the `StreamContext`.
        rows: int64 `[n]`, indices into the flattened `[S * b]` hidden states.
        readout: what is computed from those rows.
        loss: the loss function of that; None for a pass without gradients.
    """

    tokens: Tensor
    handle: Tensor
    rows: Tensor
    readout: Readout
    loss: LossFunction | None = None


def seed_pass(blocks: DraftBlocks, readout: Readout, settings: DrafterSettings, rotary: RotaryEmbedding) -> Pass:
    """The AR pass over the text, read at the token before each block: its next token is the seed."""
    context = streams.StreamContext.of(replace(blocks.layout, noisy=None), rotary, settings.dtype)
    return _pass(blocks.clean, context, blocks.rows[blocks.first], blocks.begins - 1, readout, settings)


def draft_pass(
    blocks: DraftBlocks,
    seeds: Tensor,
    chosen: Tensor | None,
    readout: Readout,
    settings: DrafterSettings,
    rotary: RotaryEmbedding,
) -> Pass:
    """The draft pass, adapter on in the noisy stream; read at all drafts, or at those with indices `chosen`."""
    context = streams.StreamContext.of(blocks.layout, rotary, settings.dtype, adapt_noisy=True)
    tokens = torch.cat([blocks.noisy(seeds, None, settings.mask_token_id), blocks.clean], dim=1)
    rows, indices = blocks.rows, blocks.indices
    if chosen is not None:
        rows, indices = rows[chosen], indices[chosen]
    return _pass(tokens, context, rows, indices, readout, settings)


def verification_pass(
    blocks: DraftBlocks,
    seeds: Tensor,
    drafts: Tensor,
    readout: Readout,
    settings: DrafterSettings,
    rotary: RotaryEmbedding,
) -> Pass:
    """The AR pass over all drafts, adapter off, blocks causal; read at the token before each draft."""
    context = streams.StreamContext.of(replace(blocks.layout, causal_blocks=True), rotary, settings.dtype)
    tokens = torch.cat([blocks.noisy(seeds, drafts, settings.mask_token_id), blocks.clean], dim=1)
    return _pass(tokens, context, blocks.rows, blocks.indices - 1, readout, settings)


def _pass(
    tokens: Tensor,
    context: streams.StreamContext,
    rows: Tensor,
    indices: Tensor,
    readout: Readout,
    settings: DrafterSettings,
) -> Pass:
    """A pass that is read at indices of the first stream."""
    return Pass(
        tokens=tokens.to(settings.device),
        handle=streams.register(context),
        rows=(indices * len(tokens) + rows).to(settings.device),
        readout=readout,
    )
