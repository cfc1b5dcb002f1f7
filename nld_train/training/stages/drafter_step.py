"""The optimizer step of a stage that trains a drafter adapter (docs/method.md, "Drafter adapter").

Four passes of Megatron's schedule over the same micro-batches: the AR pass gives the seeds of the blocks, the draft
pass the drafts, the verification pass the target tokens, all three without gradients; then the draft pass again with
its backward pass, scored at the accepted drafts and the first mismatch of each block. The draft pass is made twice
because of pipelines: drafts exist on the last stage only, and those of all micro-batches must be verified before the
first backward pass.

The host waits for the device twice: for the number of scored drafts, and in `update`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from nld_train.collectives import broadcast
from nld_train.data.draft_batch import DraftBatch
from nld_train.losses.drafter import LOSS, accept
from nld_train.losses.vocabulary import VocabularyShard
from nld_train.model import streams
from nld_train.training.loop.ahead import PreparedAhead
from nld_train.training.loop.forward_backward import LossFunction, run_passes
from nld_train.training.loop.parallel import sum_over_data_ranks, sum_over_world
from nld_train.training.loop.update import update, zero_gradients
from nld_train.training.stages.drafter_batch import DraftedBatch, DrafterSettings
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


def drafter_step(
    model: list[Any], optimizer: Any, batches: list[DraftBatch], settings: DrafterSettings, clip_grad: float
) -> DrafterResult:
    """One update of the adapter from one global batch.

    Args:
        model: this rank's chunks, with an adapter, wrapped.
        optimizer: Megatron's, over the adapter.
        batches: this rank's micro-batches.
        settings: of the passes.
        clip_grad: largest norm of the gradient; 0: no clipping.

    Raises:
        NonFiniteError: on every rank, before the update, if the loss or the gradient is not finite.
    """
    zero_gradients(model, optimizer)
    (total,) = sum_over_data_ranks([sum(batch.count for batch in batches)])
    drafted = [DraftedBatch(batch, settings) for batch in batches]
    vocabulary = VocabularyShard(settings.vocab_size, settings.mask_token_id)
    with torch.no_grad():
        _add_seeds(model, drafted, vocabulary)
        _add_drafts(model, drafted, vocabulary)
        _verify(model, drafted, vocabulary)
    sums = _backward(model, drafted, total, vocabulary)
    numbers, gradient_norm = update(optimizer, clip_grad, sums, ("drafter loss",))
    loss, kl, tv, cross_entropy, accepted, greedy_accepted, greedy = numbers
    return DrafterResult(
        loss=loss,
        kl=kl,
        tv=tv,
        cross_entropy=cross_entropy,
        accepted_length=1 + accepted / max(total, 1),
        greedy_accepted_length=1 + greedy_accepted / greedy if greedy else None,
        blocks=total,
        gradient_norm=gradient_norm,
    )


def _add_seeds(model: list[Any], batches: list[DraftedBatch], vocabulary: VocabularyShard) -> None:
    readout = partial(most_likely_tokens, vocabulary, batches[0].settings.chunk_rows)
    makers = [partial(seed_pass, batch, readout) for batch in batches]
    lengths = [batch.host.count for batch in batches]
    for batch, seeds in zip(batches, _tokens_on_every_stage(model, batches, makers, lengths, False), strict=True):
        batch.seeds = seeds


def _add_drafts(model: list[Any], batches: list[DraftedBatch], vocabulary: VocabularyShard) -> None:
    def make(batch: DraftedBatch) -> Pass:
        readout = partial(sampled_tokens, vocabulary, batch.settings.chunk_rows, batch.tensors["uniform"])
        return draft_pass(batch, readout)

    makers = [partial(make, batch) for batch in batches]
    lengths = [batch.host.drafts for batch in batches]
    for batch, drafts in zip(batches, _tokens_on_every_stage(model, batches, makers, lengths, True), strict=True):
        batch.drafts = drafts


def _verify(model: list[Any], batches: list[DraftedBatch], vocabulary: VocabularyShard) -> None:
    """Adds the acceptance of the drafts, and the hidden states of the target logits, on the last pipeline stage."""

    def make(batch: DraftedBatch) -> Pass:
        return verification_pass(batch, partial(target_tokens, vocabulary, batch.settings.chunk_rows, batch.hidden))

    targets = _read(model, batches, [partial(make, batch) for batch in batches], True)
    if not targets:  # before the last pipeline stage
        return
    for batch, expected in zip(batches, targets, strict=True):
        assert batch.drafts is not None
        blocks, steps = batch.tensors["blocks_of_drafts"], batch.tensors["steps"]
        size = batch.settings.adapter.block_size
        batch.acceptance = accept(blocks, steps, expected == batch.drafts, batch.host.count, size)
    # One of the two times in a step that the host waits for the device.
    accepted = [batch.acceptance for batch in batches if batch.acceptance is not None]
    counts = torch.stack([each.is_scored.sum() for each in accepted]).tolist()
    for batch, each, count in zip(batches, accepted, counts, strict=True):
        batch.scored = each.scored(count)


def _tokens_on_every_stage(
    model: list[Any],
    batches: list[DraftedBatch],
    makers: Sequence[Callable[[], Pass]],
    lengths: Sequence[int],
    two_streams: bool,
) -> list[Tensor]:
    """The results of `_read`, `lengths` tokens of the micro-batches, on every pipeline stage."""
    found = _read(model, batches, makers, two_streams)
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return found
    device = batches[0].settings.placement.device
    found = found or [torch.empty(length, dtype=torch.int64, device=device) for length in lengths]
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    for tokens in found:
        broadcast(tokens, source, parallel_state.get_pipeline_model_parallel_group())
    return found


def _read(
    model: list[Any], batches: list[DraftedBatch], makers: Sequence[Callable[[], Pass]], two_streams: bool
) -> list[Tensor]:
    """The results of the passes' readouts, on the last pipeline stage; an empty list elsewhere."""
    results = run_passes(model, _inputs(batches, makers, two_streams), _forward, forward_only=True)
    streams.clear()
    return [result["read"] for result in results]


def _inputs(
    batches: list[DraftedBatch], makers: Sequence[Callable[[], Pass]], two_streams: bool
) -> PreparedAhead[Pass]:
    host = batches[0].host
    rows, length = host.tensors["clean"].shape
    shape = rows, length + (host.noisy_length if two_streams else 0)
    return PreparedAhead(makers, shape, batches[0].settings.placement.device)


def _forward(one: Pass, chunk: torch.nn.Module) -> tuple[Tensor, LossFunction]:
    """One forward pass, and the loss function of its output."""
    return chunk(one.tokens, one.handle, one.rows, readout=one.readout), one.loss or _no_loss


def _no_loss(read: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return read.new_zeros(()), torch.ones((), dtype=torch.int, device=read.device), {"read": read.clone()}


def _backward(model: list[Any], batches: list[DraftedBatch], total: int, vocabulary: VocabularyShard) -> Tensor:
    """Gradients of the mean over all blocks of the step.

    Returns:
        float64 `[7]`: the global means of loss, KL, TV and cross-entropy, the number of accepted drafts, that number in
        greedily drafted blocks, and the number of these blocks.
    """
    makers = [partial(_scored_pass, batch, total, vocabulary) for batch in batches]
    results = run_passes(model, _inputs(batches, makers, True), _forward, forward_only=False)
    streams.clear()
    counted = parallel_state.get_tensor_model_parallel_rank() == 0
    own = [result["terms"] for result in results if counted]
    nothing = torch.zeros(7, device=batches[0].settings.placement.device)
    return sum_over_world(torch.stack(own).sum(0) if own else nothing)


def _scored_pass(batch: DraftedBatch, total: int, vocabulary: VocabularyShard) -> Pass:
    """The draft pass again, scored at the accepted drafts and the first mismatch of each block.

    Pipeline stages before the last one read no row.
    """
    settings = batch.settings
    target_rows = torch.empty(0) if batch.scored is None else batch.hidden[0][batch.scored]
    readout = partial(draft_losses, vocabulary, settings.chunk_rows, settings.adapter, target_rows)
    return draft_pass(batch, readout, partial(_loss_function, batch, total))


def _loss_function(batch: DraftedBatch, total: int, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """This micro-batch's part of the mean over all blocks; see `forward_backward` about what is divided and copied."""
    assert batch.acceptance is not None
    assert batch.scored is not None
    weights = batch.acceptance.weights[batch.scored] / max(total, 1)
    terms = (rows * weights[:, None]).sum(0)
    accepted, greedy = batch.acceptance.accepted, batch.tensors["greedy"]
    counts = torch.stack([accepted.sum(), (accepted * greedy).sum(), greedy.sum()])
    kept = {"terms": torch.cat([terms.detach().double(), counts.double()])}
    return terms[LOSS], torch.ones((), dtype=torch.int, device=rows.device), kept
