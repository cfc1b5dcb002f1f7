"""The optimizer step of a stage that trains a drafter adapter (docs/method.md, "Drafter adapter").

Four passes of Megatron's schedule over the same micro-batches: the AR pass gives the seeds of the blocks, the draft
pass the drafts, the verification pass the target tokens, all three without gradients; then the draft pass again with
its backward pass, scored at the accepted drafts and the first mismatch of each block. The draft pass is made twice
because of pipelines: drafts exist on the last stage only, and those of all micro-batches must be verified before the
first backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nld_train.losses.drafter import LOSS, Acceptance, accept
from nld_train.losses.vocabulary import VocabularyShard
from nld_train.model import streams
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import LossFunction, run_passes
from nld_train.training.loop.micro_batch import Samples
from nld_train.training.loop.parallel import sum_over_world
from nld_train.training.loop.step import refuse_non_finite, update, zero_gradients
from nld_train.training.stages.drafter_batch import DraftBlocks, DrafterSettings, draft_blocks
from nld_train.training.stages.drafter_passes import Pass, draft_pass, seed_pass, verification_pass
from nld_train.training.stages.drafter_readouts import (
    draft_losses,
    most_likely_tokens,
    sampled_tokens,
    target_tokens,
)


@dataclass(frozen=True)
class DrafterResult:
    """The measurements of one optimizer step; the same on every rank. Means over the blocks of the global batch.

    Attributes:
        loss: `L_LK` and cross-entropy.
        kl: KL divergence of the draft from the AR prediction, inside the candidate set.
        tv: total variation.
        cross_entropy: to the AR argmax.
        accepted_length: tokens that a cycle of draft and verification commits: accepted drafts and the bonus token.
        greedy_accepted_length: the same over the blocks that were drafted greedily; None without any.
        blocks: number of blocks.
        gradient_norm: before clipping.
    """

    loss: float
    kl: float
    tv: float
    cross_entropy: float
    accepted_length: float
    greedy_accepted_length: float | None
    blocks: int
    gradient_norm: float


@dataclass(frozen=True)
class _Common:
    """The arguments that all passes of a step have in common."""

    model: list[Any]
    vocabulary: VocabularyShard
    settings: DrafterSettings
    rotary: RotaryEmbedding


@dataclass
class _DraftedBatch:
    """A micro-batch with what the passes add to it. `acceptance` and `hidden` are of the last pipeline stage only."""

    blocks: DraftBlocks
    seeds: Tensor | None = None
    drafts: Tensor | None = None
    acceptance: Acceptance | None = None
    hidden: list[Tensor] = field(default_factory=list)


def drafter_step(
    model: list[Any],
    optimizer: Any,
    samples: list[Samples],
    settings: DrafterSettings,
    rotary: RotaryEmbedding,
    clip_grad: float,
) -> DrafterResult:
    """One update of the adapter from one global batch.

    Args:
        model: this rank's chunks, with an adapter, wrapped.
        optimizer: Megatron's, over the adapter.
        samples: this rank's micro-batches.
        settings: how samples become blocks.
        rotary: the rotary embedding of the model.
        clip_grad: largest norm of the gradient; 0: no clipping.

    Raises:
        NonFiniteError: on every rank, before the update, if the loss or the gradient is not finite.
    """
    zero_gradients(model, optimizer)
    batches = [_DraftedBatch(draft_blocks(batch, settings)) for batch in samples]
    total = _global_blocks(batches, settings.device)
    common = _Common(model, VocabularyShard(settings.vocab_size, settings.mask_token_id), settings, rotary)
    with torch.no_grad():
        _add_seeds(batches, common)
        _add_drafts(batches, common)
        _verify(batches, common)
    loss, kl, tv, cross_entropy, accepted, greedy_accepted, greedy = _backward(batches, total, common)
    refuse_non_finite(drafter_loss=loss)
    return DrafterResult(
        loss=loss,
        kl=kl,
        tv=tv,
        cross_entropy=cross_entropy,
        accepted_length=1 + accepted / max(total, 1),
        greedy_accepted_length=1 + greedy_accepted / greedy if greedy else None,
        blocks=total,
        gradient_norm=update(optimizer, clip_grad),
    )


def _global_blocks(batches: list[_DraftedBatch], device: torch.device) -> int:
    """Blocks of the whole step, over all data-parallel ranks."""
    count = torch.tensor(sum(batch.blocks.count for batch in batches), dtype=torch.int64, device=device)
    dist.all_reduce(count, group=parallel_state.get_data_parallel_group())
    return int(count)


def _add_seeds(batches: list[_DraftedBatch], common: _Common) -> None:
    settings = common.settings
    readout = partial(most_likely_tokens, common.vocabulary, settings.chunk_rows)
    passes = [seed_pass(batch.blocks, readout, settings, common.rotary) for batch in batches]
    for batch, seeds in zip(batches, _tokens_on_every_stage(common.model, passes), strict=True):
        batch.seeds = seeds


def _add_drafts(batches: list[_DraftedBatch], common: _Common) -> None:
    settings = common.settings
    passes = []
    for batch in batches:
        assert batch.seeds is not None
        uniform = torch.where(batch.blocks.greedy, -1.0, batch.blocks.uniform).to(settings.device)
        readout = partial(sampled_tokens, common.vocabulary, settings.chunk_rows, uniform)
        passes.append(draft_pass(batch.blocks, batch.seeds, None, readout, settings, common.rotary))
    for batch, drafts in zip(batches, _tokens_on_every_stage(common.model, passes), strict=True):
        batch.drafts = drafts


def _verify(batches: list[_DraftedBatch], common: _Common) -> None:
    """Adds the acceptance of the drafts, and the hidden states of the target logits, on the last pipeline stage."""
    settings = common.settings
    passes = []
    for batch in batches:
        assert batch.seeds is not None
        assert batch.drafts is not None
        readout = partial(target_tokens, common.vocabulary, settings.chunk_rows, batch.hidden)
        passes.append(verification_pass(batch.blocks, batch.seeds, batch.drafts, readout, settings, common.rotary))
    # Empty before the last pipeline stage.
    for batch, targets in zip(batches, _read(common.model, passes), strict=False):
        assert batch.drafts is not None
        matches = targets == batch.drafts.to(targets.device)
        blocks, steps = batch.blocks.blocks.to(matches.device), batch.blocks.steps.to(matches.device)
        batch.acceptance = accept(blocks, steps, matches, batch.blocks.count, settings.adapter.block_size)


def _tokens_on_every_stage(model: list[Any], passes: Sequence[Pass]) -> list[Tensor]:
    """The results of `_read`, one token per row of each pass, on every pipeline stage."""
    found = _read(model, passes)
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return found
    found = found or [torch.empty(len(one.rows), dtype=torch.int64, device=one.rows.device) for one in passes]
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    for tokens in found:
        dist.broadcast(tokens, source, group=parallel_state.get_pipeline_model_parallel_group())
    return found


def _read(model: list[Any], passes: Sequence[Pass]) -> list[Tensor]:
    """The results of the passes' readouts, on the last pipeline stage; an empty list elsewhere."""
    results = run_passes(model, passes, _forward, forward_only=True)
    streams.clear()
    return [result["read"] for result in results]


def _forward(passes: Iterator[Pass], chunk: torch.nn.Module) -> tuple[Tensor, LossFunction]:
    """What Megatron's schedules call per micro-batch."""
    one = next(passes)
    return chunk(one.tokens, one.handle, one.rows, readout=one.readout), one.loss or _no_loss


def _no_loss(read: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return read.new_zeros(()), torch.ones((), dtype=torch.int, device=read.device), {"read": read.clone()}


def _backward(batches: list[_DraftedBatch], total: int, common: _Common) -> list[float]:
    """Gradients of the mean over all blocks of the step.

    Returns:
        The global means of loss, KL, TV and cross-entropy, the number of accepted drafts, that number in greedily
        drafted blocks, and the number of these blocks.
    """
    passes = [_scored_pass(batch, total, common) for batch in batches]
    results = run_passes(common.model, passes, _forward, forward_only=False)
    streams.clear()
    counted = parallel_state.get_tensor_model_parallel_rank() == 0
    own = [result["terms"] for result in results if counted]
    return sum_over_world((torch.stack(own).sum(0) if own else torch.zeros(7)).tolist(), common.settings.device)


def _scored_pass(batch: _DraftedBatch, total: int, common: _Common) -> Pass:
    """The draft pass again, scored at the accepted drafts and the first mismatch of each block."""
    assert batch.seeds is not None
    # Pipeline stages before the last one read no row.
    scored, target_rows = torch.empty(0, dtype=torch.int64), torch.empty(0)
    if batch.acceptance is not None:
        scored, target_rows = batch.acceptance.scored.cpu(), batch.hidden[0][batch.acceptance.scored]
    settings = common.settings
    readout = partial(draft_losses, common.vocabulary, settings.chunk_rows, settings.adapter, target_rows)
    draft = draft_pass(batch.blocks, batch.seeds, scored, readout, settings, common.rotary)
    return replace(draft, loss=partial(_loss_function, batch, total))


def _loss_function(batch: _DraftedBatch, total: int, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """This micro-batch's part of the mean over all blocks; see `forward_backward` about what is divided and cloned."""
    assert batch.acceptance is not None
    weights = batch.acceptance.weights / max(total, 1)
    terms = (rows * weights[:, None]).sum(0)
    greedy = batch.blocks.greedy[batch.blocks.first].to(rows.device)
    accepted = batch.acceptance.accepted
    counts = torch.stack([accepted.sum(), accepted[greedy].sum(), greedy.sum()])
    kept = {"terms": torch.cat([terms.detach().double(), counts.double()])}
    return terms[LOSS], torch.ones((), dtype=torch.int, device=rows.device), kept
