"""The forward passes of a drafter stage, each over all blocks of a micro-batch at once.

The noisy stream consists of the blocks: seeds and masks in the draft pass, seeds and drafts in the verification pass.
The clean stream is the text, of which each block sees the part before it (`masking.visibility`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from nld_train.masking.layout import StreamLayout
from nld_train.model import streams
from nld_train.model.ministral3 import Readout
from nld_train.training.loop.forward_backward import LossFunction
from nld_train.training.loop.micro_batch import stream_context
from nld_train.training.stages.drafter_batch import DraftedBatch


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


def seed_pass(batch: DraftedBatch, readout: Readout) -> Pass:
    """The AR pass over the text, read at the token before each block: its next token is the seed."""
    handle = _register(batch, lambda layout: replace(layout, noisy=None))
    return Pass(batch.tensors["clean"], handle, batch.tensors["seed_rows"], readout)


def draft_pass(batch: DraftedBatch, readout: Readout, loss: LossFunction | None = None) -> Pass:
    """The draft pass, adapter on in the noisy stream; read at all drafts, or at the scored ones once they are known."""
    rows = batch.tensors["rows"]
    if batch.scored is not None:
        rows = rows[batch.scored]
    return Pass(batch.both_streams(with_drafts=False), _register(batch, adapt_noisy=True), rows, readout, loss)


def verification_pass(batch: DraftedBatch, readout: Readout) -> Pass:
    """The AR pass over all drafts, adapter off, blocks causal; read at the token before each draft."""
    tokens = batch.both_streams(with_drafts=True)
    handle = _register(batch, lambda layout: replace(layout, causal_blocks=True))
    return Pass(tokens, handle, batch.tensors["rows"] - len(tokens), readout)


def _register(
    batch: DraftedBatch,
    of_pass: Callable[[StreamLayout], StreamLayout] = lambda layout: layout,
    adapt_noisy: bool = False,
) -> Tensor:
    """The handle of the context of a pass, whose layout `of_pass` makes of that of both streams."""
    placement = batch.settings.placement
    return streams.register(stream_context(batch.host.tensors, batch.tensors, placement, None, of_pass, adapt_noisy))
