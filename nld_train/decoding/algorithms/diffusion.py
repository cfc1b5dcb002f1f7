"""Diffusion decoding: denoise a block in both directions over the cache, then write it causally."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.algorithms.batch import Batch
from nld_train.decoding.policies.commit import BlockView, CommitPolicy, chosen_positions


@dataclass
class Blocks:
    """The block at work of each row; all tensors on the CPU.

    Attributes:
        tokens: int64 `[a, T]`, the mask id where masked and beyond a row's block.
        masked: bool `[a, T]`; what is masked is never read off the ids.
        sizes: int64 `[a]`, tokens of each block: the last one of a row may be shorter.
        passes: int64 `[a]`, denoising passes made on it.
        committed_by: int64 `[a, T]`, the row's forward that committed each token.
    """

    tokens: Tensor
    masked: Tensor
    sizes: Tensor
    passes: Tensor
    committed_by: Tensor

    def keep(self, places: list[int]) -> None:
        """Forgets all rows but these."""
        for name in ("tokens", "masked", "sizes", "passes", "committed_by"):
            setattr(self, name, getattr(self, name)[places])


def decode_diffusion(batch: Batch, policy: CommitPolicy) -> None:
    """Decodes all rows block by block (reference section 7).

    Rows do not wait for each other: one forward denoises the blocks of some and writes the complete blocks of others.
    """
    blocks = _empty_blocks(batch)
    _begin_rows(batch, blocks, batch.places)
    _turn_over(batch, blocks)
    while batch.session.rows:
        complete = ~blocks.masked.any(1)
        width = int(blocks.sizes.max())
        logits = batch.session.look_or_append(blocks.tokens[:, :width], blocks.sizes, appended=complete)
        proposals = batch.sampler.draw(logits, _wanted(blocks, complete, width))
        _denoise(batch, policy, blocks, logits, proposals, ~complete)
        written = torch.nonzero(complete).flatten()
        _start_blocks(batch, blocks, written.tolist(), proposals[written, blocks.sizes[written] - 1])
        _commit(batch, blocks, batch.places)
        _turn_over(batch, blocks)


def _empty_blocks(batch: Batch) -> Blocks:
    zeros = torch.zeros(len(batch.places), batch.options.block_length, dtype=torch.int64)
    return Blocks(zeros.clone(), zeros.bool(), zeros[:, 0].clone(), zeros[:, 0].clone(), zeros)


def _begin_rows(batch: Batch, blocks: Blocks, places: list[int]) -> None:
    """Prefills the rows at these places, and begins the first block of each."""
    _start_blocks(batch, blocks, places, batch.first_tokens(places))
    _commit(batch, blocks, places)


def _turn_over(batch: Batch, blocks: Blocks) -> None:
    """Lets rows leave and others begin, until every row at work has something to do."""
    while True:
        staying, fresh = batch.turn_over()
        blocks.keep(staying)
        if not fresh:
            return
        _begin_rows(batch, blocks, fresh)


def _wanted(blocks: Blocks, complete: Tensor, width: int) -> Tensor:
    """Where a forward's predictions are drawn: at masks, and after the last token of a complete block."""
    last = torch.arange(width) == blocks.sizes[:, None] - 1
    return torch.where(complete[:, None], last, blocks.masked[:, :width])


def _start_blocks(batch: Batch, blocks: Blocks, places: list[int], seeds: Tensor) -> None:
    """`[seed, MASK x (size - 1)]` at these places; the seeds, int64 `[n]`, were predicted by the last forward."""
    for place, seed in zip(places, seeds.tolist(), strict=True):
        size = min(batch.options.block_length, batch.output(place).remaining)
        blocks.tokens[place] = batch.mask_token_id
        blocks.tokens[place, 0] = seed
        blocks.masked[place] = False
        blocks.masked[place, 1:size] = True
        blocks.sizes[place] = size
        blocks.passes[place] = 0
        blocks.committed_by[place, 0] = batch.forwards_so_far(place)


def _denoise(
    batch: Batch, policy: CommitPolicy, blocks: Blocks, logits: Tensor, proposals: Tensor, busy: Tensor
) -> None:
    """Commits what the policy chooses in the rows of bool `[a]` `busy`."""
    places = torch.nonzero(busy).flatten()
    if not len(places):
        return
    view = _view(batch, blocks, logits, proposals, places)
    chosen = chosen_positions(policy, view)
    for index, place in enumerate(places.tolist()):
        where = torch.nonzero(chosen[index]).flatten()
        blocks.tokens[place, where] = proposals[place, where]
        blocks.masked[place, where] = False
        blocks.committed_by[place, where] = batch.forwards_so_far(place)
        batch.output(place).accepted.append(len(where))
    blocks.passes[places] += 1


def _view(batch: Batch, blocks: Blocks, logits: Tensor, proposals: Tensor, places: Tensor) -> BlockView:
    width = logits.shape[1]

    def look(tokens: Tensor) -> Tensor:
        everyone = blocks.tokens[:, :width].clone()
        everyone[places] = tokens
        return batch.session.peek(everyone, blocks.sizes)[places]

    return BlockView(
        tokens=blocks.tokens[places, :width],
        masked=blocks.masked[places, :width],
        proposals=proposals[places],
        logits=logits[places],
        passes=blocks.passes[places],
        sizes=blocks.sizes[places],
        rows=[batch.session.rows[place] for place in places.tolist()],
        starts=batch.session.lengths[places],
        look=look,
    )


def _commit(batch: Batch, blocks: Blocks, places: list[int]) -> None:
    """Moves complete blocks into the outputs, and ends rows at a stop with no mask before it."""
    for place in places:
        output = batch.output(place)
        size = int(blocks.sizes[place])
        masked, tokens = blocks.masked[place, :size].tolist(), blocks.tokens[place, :size].tolist()
        certain = masked.index(True) if any(masked) else size
        if certain == size or output.stop_after(tokens[:certain]) is not None:
            passes = blocks.committed_by[place, :certain].tolist()
            output.commit(tokens[:certain], passes, [False] + [True] * (certain - 1))
            batch.tell(place)
        else:
            _tell_of_block(batch, place, tokens, masked, blocks.committed_by[place, :size].tolist())


def _tell_of_block(batch: Batch, place: int, tokens: list[int], masked: list[bool], passes: list[int]) -> None:
    """Shows a block that still has masks; what stands under a mask is not of this block."""
    batch.tell(
        place,
        block=[None if hidden else token for token, hidden in zip(tokens, masked, strict=True)],
        committed_by=[0 if hidden else number for number, hidden in zip(passes, masked, strict=True)],
        drafted=[index > 0 and not hidden for index, hidden in enumerate(masked)],
    )
