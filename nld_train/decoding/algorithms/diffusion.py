"""Diffusion decoding: denoise a block in both directions over the KV cache, then append it, as a rule causally."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.algorithms.forwards import Forwards
from nld_train.decoding.algorithms.sampling import Shaping
from nld_train.decoding.policies.commit import DEFAULT_FIGURES, FIGURES, BlockView, CommitPolicy, chosen_positions


@dataclass
class Blocks:
    """The current block of each active sequence; all tensors on the CPU.

    Attributes:
        tokens: int64 `[a, T]`, the mask id where masked and beyond a sequence's block.
        masked: bool `[a, T]`; never derived from the ids.
        sizes: int64 `[a]`, tokens of each block: the last one of a sequence may be shorter.
        passes: int64 `[a]`, denoising passes made on each block.
        committed_by: int64 `[a, T]`, the sequence's forward that committed each token.
    """

    tokens: Tensor
    masked: Tensor
    sizes: Tensor
    passes: Tensor
    committed_by: Tensor

    def keep_slots(self, slots: list[int]) -> None:
        """Keeps the blocks of these slots only."""
        for name in ("tokens", "masked", "sizes", "passes", "committed_by"):
            setattr(self, name, getattr(self, name)[slots])

    def read(self, slot: int) -> tuple[list[int], list[bool], int]:
        """The tokens of a block, which of them are masked, and how many there are before the first mask."""
        size = int(self.sizes[slot])
        masked = self.masked[slot, :size].tolist()
        return self.tokens[slot, :size].tolist(), masked, masked.index(True) if any(masked) else size


def decode_diffusion(batch: Batch, policy: CommitPolicy) -> None:
    """Decodes all sequences block by block (`docs/method.md`, "Decoding").

    Sequences are not synchronised: one forward denoises the blocks of some and appends the complete blocks of others.
    """
    blocks = _empty_blocks(batch)
    _prefill(batch, blocks, batch.slots)
    _refill_slots(batch, blocks)
    while batch.session.active:
        complete = ~blocks.masked.any(1)
        result = _forward(batch, policy, blocks, complete)
        sampled = result.sampled
        _denoise(batch, policy, blocks, result, ~complete)
        appended = torch.nonzero(complete).flatten()
        _start_blocks(batch, blocks, appended.tolist(), sampled[appended, blocks.sizes[appended] - 1])
        _commit(batch, blocks, batch.slots)
        _refill_slots(batch, blocks)


@dataclass(frozen=True)
class Predictions:
    """The result of a forward over all blocks.

    Attributes:
        sampled: int64 `[a, T]` on the CPU, the token sampled at each mask, and after the end of a complete block.
        logits: float32 `[a, T, V]` on the model's device.
        figures: float32 `[a, T]` on the CPU, figures of `policies.commit.FIGURES` that the forward has computed.
    """

    sampled: Tensor
    logits: Tensor
    figures: dict[str, Tensor]


@dataclass(frozen=True)
class DenoisingPass:
    """A `forwards.Body`: from blocks to the tokens that are sampled at their positions, and figures of the predictions.

    Inputs: int64 `[a, T]` tokens, int64 `[a]` sizes, and bool `[a]`, the blocks that are complete and appended.
    Results: int64 `[a, T * (1 + figures)]`, the tokens, and the bits of each figure in float64; the logits.

    Complete blocks are appended as the clean stream was trained: causally, or with `whole_blocks` in both directions.
    """

    shaping: Shaping
    figures: tuple[str, ...]
    whole_blocks: bool = False

    def __call__(
        self, forwards: Forwards, tokens: Tensor, sizes: Tensor, complete: Tensor, numbers: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """See `forwards.Body`."""
        complete = complete.bool()
        logits = forwards.mixed(tokens, sizes, torch.zeros_like(complete) if self.whole_blocks else complete)
        sampled = self.shaping.draw(logits, numbers)
        figures = [FIGURES[name](logits, sampled).double().view(torch.int64) for name in self.figures]
        return torch.cat([sampled, *figures], 1).to(tokens.device), logits


def _forward(batch: Batch, policy: CommitPolicy, blocks: Blocks, complete: Tensor) -> Predictions:
    """One forward over all blocks. On a GPU it also computes what the policy reads, so that the host reads once."""
    width = batch.step_length(blocks.sizes)
    figures = getattr(policy, "figures", DEFAULT_FIGURES) if batch.session.fixed else ()
    inputs = {
        "tokens": blocks.tokens[:, :width],
        "sizes": blocks.sizes,
        "complete": complete,
        **batch.sampling.numbers(_to_sample(blocks, complete, width)),
    }
    whole_blocks = batch.session.engine.clean_stream.block is not None
    denoising = DenoisingPass(batch.sampling.shaping, figures, whole_blocks)
    found, logits = batch.session.cycle(denoising, width, inputs)
    batch.session.commit(torch.where(complete, blocks.sizes, 0))
    sampled, *measured = found.split(width, dim=1)
    values = (column.contiguous().view(torch.float64).float() for column in measured)
    return Predictions(sampled, logits, dict(zip(figures, values, strict=True)))


def _empty_blocks(batch: Batch) -> Blocks:
    zeros = torch.zeros(len(batch.slots), batch.options.block_length, dtype=torch.int64)
    return Blocks(zeros.clone(), zeros.bool(), zeros[:, 0].clone(), zeros[:, 0].clone(), zeros)


def _prefill(batch: Batch, blocks: Blocks, slots: list[int]) -> None:
    """Prefills the sequences in these slots and starts the first block of each."""
    _start_blocks(batch, blocks, slots, batch.first_tokens(slots))
    _commit(batch, blocks, slots)


def _refill_slots(batch: Batch, blocks: Blocks) -> None:
    """Refills the slots until every active sequence has a block to denoise or to append."""
    while True:
        kept, admitted = batch.refill_slots()
        blocks.keep_slots(kept)
        if not admitted:
            return
        _prefill(batch, blocks, admitted)


def _to_sample(blocks: Blocks, complete: Tensor, width: int) -> Tensor:
    """The positions at which a forward's tokens are sampled: masks, and the last token of a complete block."""
    last = torch.arange(width) == blocks.sizes[:, None] - 1
    return torch.where(complete[:, None], last, blocks.masked[:, :width])


def _given(batch: Batch) -> int:
    """The number of tokens that a block has before its first pass: the seed, or none."""
    start = batch.options.block_start or batch.session.engine.clean_stream.block_start
    return int(start == "seed")


def _start_blocks(batch: Batch, blocks: Blocks, slots: list[int], seeds: Tensor) -> None:
    """`[seed, MASK x (size - 1)]`, or `[MASK x size]`, in these slots.

    The seeds, int64 `[n]`, were sampled from the last forward.
    """
    given = _given(batch)
    for slot, seed in zip(slots, seeds.tolist(), strict=True):
        size = min(batch.options.block_length, batch.output(slot).remaining)
        blocks.tokens[slot] = batch.mask_token_id
        blocks.tokens[slot, :given] = seed
        blocks.masked[slot] = False
        blocks.masked[slot, given:size] = True
        blocks.sizes[slot] = size
        blocks.passes[slot] = 0
        blocks.committed_by[slot, 0] = batch.forwards_so_far(slot)


def _denoise(batch: Batch, policy: CommitPolicy, blocks: Blocks, result: Predictions, denoised: Tensor) -> None:
    """Commits what the policy chooses in the slots of bool `[a]` `denoised`."""
    slots, sampled = torch.nonzero(denoised).flatten(), result.sampled
    if not len(slots):
        return
    view = _view(batch, blocks, result, slots)
    chosen = chosen_positions(policy, view)
    for index, slot in enumerate(slots.tolist()):
        where = torch.nonzero(chosen[index]).flatten()
        blocks.tokens[slot, where] = sampled[slot, where]
        blocks.masked[slot, where] = False
        blocks.committed_by[slot, where] = batch.forwards_so_far(slot)
        batch.output(slot).accepted.append(len(where))
    blocks.passes[slots] += 1


def _view(batch: Batch, blocks: Blocks, result: Predictions, slots: Tensor) -> BlockView:
    width = result.sampled.shape[1]

    def forward_uncounted(tokens: Tensor) -> Tensor:
        all_tokens = blocks.tokens[:, :width].clone()
        all_tokens[slots] = tokens
        return batch.session.forward_uncounted(all_tokens, blocks.sizes)[slots]

    view = BlockView(
        tokens=blocks.tokens[slots, :width],
        masked=blocks.masked[slots, :width],
        sampled=result.sampled[slots],
        read_logits=lambda: result.logits[slots],
        passes=blocks.passes[slots],
        sizes=blocks.sizes[slots],
        sequences=[batch.session.active[slot] for slot in slots.tolist()],
        starts=batch.session.lengths[slots],
        forward_uncounted=forward_uncounted,
    )
    view.set_figures({name: figure[slots] for name, figure in result.figures.items()})
    return view


def _commit(batch: Batch, blocks: Blocks, slots: list[int]) -> None:
    """Commits complete blocks, and ends sequences at a stop that no mask precedes."""
    given = _given(batch)
    for slot in slots:
        output = batch.output(slot)
        if batch.options.max_thinking_tokens is not None:
            _limit_thinking(batch, blocks, slot)
        tokens, masked, certain = blocks.read(slot)
        if certain == len(tokens) or output.stop_after(tokens[:certain]) is not None:
            passes = blocks.committed_by[slot, :certain].tolist()
            output.commit(tokens[:certain], passes, [False] * given + [True] * (certain - given))
            batch.notify(slot)
        else:
            _notify_of_block(batch, slot, tokens, masked, blocks.committed_by[slot, : len(tokens)].tolist())


def _limit_thinking(batch: Batch, blocks: Blocks, slot: int) -> None:
    """Ends a block with the end of thinking as soon as all tokens before it are known, and drops what was after it."""
    tokens, _, certain = blocks.read(slot)
    at = batch.thinking.due_in(batch.output(slot).tokens, tokens[:certain])
    if at is None or at >= len(tokens):
        return
    blocks.tokens[slot, at] = batch.thinking.end_token
    blocks.tokens[slot, at + 1 :] = batch.mask_token_id
    blocks.masked[slot] = False
    blocks.sizes[slot] = at + 1
    blocks.committed_by[slot, at] = batch.forwards_so_far(slot)


def _notify_of_block(batch: Batch, slot: int, tokens: list[int], masked: list[bool], passes: list[int]) -> None:
    """Notifies the observer of a block with masks; at masked positions `passes` has values of an earlier block."""
    given = _given(batch)
    batch.notify(
        slot,
        block=[None if hidden else token for token, hidden in zip(tokens, masked, strict=True)],
        committed_by=[0 if hidden else number for number, hidden in zip(passes, masked, strict=True)],
        drafted=[index >= given and not hidden for index, hidden in enumerate(masked)],
    )
