"""The optimizer step of a stage that trains a drafter adapter.

Four passes of Megatron's schedule over the same micro-batches: the AR pass gives seeds, the draft pass drafts, the
verifying pass the AR verdicts on them, all three without gradients; then the draft pass again with its backward pass,
scored where the loss wants it. The repeated pass is the price of pipelines: only the last stage sees a draft, and all
micro-batches must be judged before any backward pass needs the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nld_train.losses.cross_entropy import chunked_nll
from nld_train.losses.drafter import LOSS, Acceptance, accept, row_losses
from nld_train.losses.vocabulary import VocabularyShard
from nld_train.model import streams
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import LossFunction, run_passes
from nld_train.training.loop.micro_batch import Samples
from nld_train.training.loop.parallel import sum_over_world
from nld_train.training.loop.step import refuse_non_finite, update
from nld_train.training.stages.drafter_batch import (
    DraftBlocks,
    DrafterSettings,
    Pass,
    draft_blocks,
    draft_pass,
    seed_pass,
    verify_pass,
)

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DrafterResult:
    """What one optimizer step measured; the same on every rank. Means over the blocks of the global batch.

    Attributes:
        loss: `L_LK` and cross-entropy.
        kl: KL divergence of the draft from the AR prediction, inside the candidate set.
        tv: total variation.
        cross_entropy: to the AR argmax.
        accepted_length: tokens that a cycle of two forwards would have brought: accepted drafts and the AR token after
            them.
        greedy_accepted_length: the same over the blocks that were drafted greedily; None where there was none.
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


@dataclass
class _Judged:
    """A micro-batch on its way through the passes. What only the last pipeline stage knows is None elsewhere."""

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
        rotary: gives the angles.
        clip_grad: largest norm of the gradient, 0 for any.

    Raises:
        NonFiniteError: on every rank, before the update, if the loss or the gradient is not finite.
    """
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    judged = [_Judged(draft_blocks(batch, settings)) for batch in samples]
    total = _global_blocks(judged, settings.device)
    vocabulary = VocabularyShard(settings.vocab_size, settings.mask_token_id)
    with torch.no_grad():
        _find_seeds(model, judged, vocabulary, settings, rotary)
        _find_drafts(model, judged, vocabulary, settings, rotary)
        _judge(model, judged, vocabulary, settings, rotary)
    terms = _backward(model, judged, total, vocabulary, settings, rotary)
    loss, kl, tv, cross_entropy, accepted, greedy_accepted, greedy = terms
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


def _global_blocks(judged: list[_Judged], device: torch.device) -> int:
    """Blocks of the whole step, over all data-parallel ranks."""
    count = torch.tensor(sum(one.blocks.count for one in judged), dtype=torch.int64, device=device)
    dist.all_reduce(count, group=parallel_state.get_data_parallel_group())
    return int(count)


def _find_seeds(model: list[Any], judged: list[_Judged], *common: Any) -> None:
    vocabulary, settings, rotary = common
    readout = partial(_tokens, vocabulary, settings.chunk_rows, None)
    passes = [seed_pass(one.blocks, readout, settings, rotary) for one in judged]
    for one, seeds in zip(judged, _read(model, passes), strict=True):
        one.seeds = seeds


def _find_drafts(model: list[Any], judged: list[_Judged], *common: Any) -> None:
    vocabulary, settings, rotary = common
    passes = []
    for one in judged:
        assert one.seeds is not None
        uniform = torch.where(one.blocks.greedy, -1.0, one.blocks.uniform).to(settings.device)
        readout = partial(_tokens, vocabulary, settings.chunk_rows, uniform)
        passes.append(draft_pass(one.blocks, one.seeds, None, readout, settings, rotary))
    for one, drafts in zip(judged, _read(model, passes), strict=True):
        one.drafts = drafts


def _judge(model: list[Any], judged: list[_Judged], *common: Any) -> None:
    """Accepted drafts, on the last pipeline stage, where also the hidden states that judged them are kept."""
    vocabulary, settings, rotary = common
    passes = []
    for one in judged:
        assert one.seeds is not None
        assert one.drafts is not None
        readout = partial(_verdicts, vocabulary, settings.chunk_rows, one.hidden)
        passes.append(verify_pass(one.blocks, one.seeds, one.drafts, readout, settings, rotary))
    # Empty before the last pipeline stage.
    for one, verdicts in zip(judged, _run_forward(model, passes), strict=False):
        assert one.drafts is not None
        held = verdicts == one.drafts.to(verdicts.device)
        blocks, steps = one.blocks.blocks.to(held.device), one.blocks.steps.to(held.device)
        one.acceptance = accept(blocks, steps, held, one.blocks.count, settings.adapter.block_size)


def _tokens(vocabulary: VocabularyShard, chunk_rows: int, uniform: Tensor | None, rows: Tensor, head: Head) -> Tensor:
    """Readout: the likeliest token of each row, or a sampled one where `uniform` is not negative."""

    def of_logits(logits: Tensor, chosen: Tensor) -> Tensor:
        logits = vocabulary.allowed(logits)
        best = vocabulary.top(logits, 1)[:, 0]
        if uniform is None:
            return best
        drawn_with = uniform[chosen]
        return torch.where(drawn_with < 0, best, vocabulary.draw(logits, drawn_with.clamp(min=0)))

    return chunked_nll(rows, torch.arange(len(rows), device=rows.device), head, of_logits, chunk_rows)


def _verdicts(vocabulary: VocabularyShard, chunk_rows: int, hidden: list[Tensor], rows: Tensor, head: Head) -> Tensor:
    """Readout: the likeliest token of each row; its hidden state is kept, which is less than its logits."""
    hidden.append(rows)
    return _tokens(vocabulary, chunk_rows, None, rows, head)


def _losses(
    vocabulary: VocabularyShard, settings: DrafterSettings, verdict_rows: Tensor, rows: Tensor, head: Head
) -> Tensor:
    """Readout: the loss of each scored draft and its parts, `[n, 4]`."""
    adapter = settings.adapter

    def of_logits(logits: Tensor, chosen: Tensor) -> Tensor:
        with torch.no_grad():
            verdict = head(verdict_rows[chosen])
        return row_losses(vocabulary, logits, verdict, adapter.temperature, adapter.top_k)

    return chunked_nll(rows, torch.arange(len(rows), device=rows.device), head, of_logits, settings.chunk_rows)


def _read(model: list[Any], passes: Sequence[Pass]) -> list[Tensor]:
    """One token per row of each pass, on every pipeline stage."""
    found = _run_forward(model, passes)
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return found
    found = found or [torch.empty(len(one.rows), dtype=torch.int64, device=one.rows.device) for one in passes]
    source = parallel_state.get_pipeline_model_parallel_last_rank()
    for tokens in found:
        dist.broadcast(tokens, source, group=parallel_state.get_pipeline_model_parallel_group())
    return found


def _run_forward(model: list[Any], passes: Sequence[Pass]) -> list[Tensor]:
    """What the passes read, on the last pipeline stage; an empty list elsewhere."""
    results = run_passes(model, passes, _forward, forward_only=True)
    streams.clear()
    return [result["read"] for result in results]


def _forward(passes: Iterator[Pass], chunk: torch.nn.Module) -> tuple[Tensor, LossFunction]:
    """What Megatron's schedules call per micro-batch."""
    one = next(passes)
    return chunk(one.tokens, one.handle, one.rows, readout=one.readout), one.loss or _no_loss


def _no_loss(read: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return read.new_zeros(()), torch.ones((), dtype=torch.int, device=read.device), {"read": read.clone()}


def _backward(model: list[Any], judged: list[_Judged], total: int, *common: Any) -> list[float]:
    """Gradients of the mean over all blocks of the step.

    Returns:
        The global means of loss, KL, TV and cross-entropy, the number of accepted drafts, that in blocks which were
        drafted greedily, and the number of these.
    """
    results = run_passes(model, [_scored_pass(one, total, *common) for one in judged], _forward, forward_only=False)
    streams.clear()
    counted = parallel_state.get_tensor_model_parallel_rank() == 0
    own = [result["terms"] for result in results if counted]
    return sum_over_world((torch.stack(own).sum(0) if own else torch.zeros(7)).tolist(), common[1].device)


def _scored_pass(
    one: _Judged, total: int, vocabulary: VocabularyShard, settings: DrafterSettings, rotary: RotaryEmbedding
) -> Pass:
    """The draft again, scored where it was accepted and where it first was not."""
    assert one.seeds is not None
    # Stages before the last one read no row.
    scored, verdict_rows = torch.empty(0, dtype=torch.int64), torch.empty(0)
    if one.acceptance is not None:
        scored, verdict_rows = one.acceptance.scored.cpu(), one.hidden[0][one.acceptance.scored]
    readout = partial(_losses, vocabulary, settings, verdict_rows)
    draft = draft_pass(one.blocks, one.seeds, scored, readout, settings, rotary)
    return replace(draft, loss=partial(_share_of_loss, one, total))


def _share_of_loss(one: _Judged, total: int, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """This micro-batch's share of the mean over all blocks; see `forward_backward` about what is divided and cloned."""
    assert one.acceptance is not None
    weights = one.acceptance.weights / max(total, 1)
    terms = (rows * weights[:, None]).sum(0)
    greedy = one.blocks.greedy[one.blocks.first].to(rows.device)
    accepted = one.acceptance.accepted
    counts = torch.stack([accepted.sum(), accepted[greedy].sum(), greedy.sum()])
    kept = {"terms": torch.cat([terms.detach().double(), counts.double()])}
    return terms[LOSS], torch.ones((), dtype=torch.int, device=rows.device), kept
