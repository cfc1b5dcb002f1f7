"""Trajectories of one-token-per-pass decoding, as examples for the trained sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding import DecodeOptions, Engine
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.policies.commit import BlockView, chosen_positions
from nld_train.decoding.policies.trained_sampler import Observation
from nld_train.evaluation.trajectories import ONE_PER_PASS, committed


@dataclass(frozen=True)
class Examples:
    """States of blocks on their way, and what was right in them.

    Attributes:
        seen: n states of blocks of T positions.
        wanted: bool `[n, T]`, masked positions whose final token is known.
        labels: bool `[n, T]`, is the most likely token of this state the one that was finally committed.
        blocks: int64 `[n]`, which block of the collection each state belongs to.
    """

    seen: Observation
    wanted: Tensor
    labels: Tensor
    blocks: Tensor

    def __len__(self) -> int:
        return len(self.blocks)

    def pick(self, index: Tensor) -> Examples:
        """Some of the states, int64 `[m]`."""
        seen = Observation(self.seen.top[index], self.seen.statistics[index], self.seen.real[index])
        return Examples(seen, self.wanted[index], self.labels[index], self.blocks[index])


@dataclass
class _Block:
    states: list[Observation] = field(default_factory=list)
    masked: list[Tensor] = field(default_factory=list)
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    unknown: Tensor = field(default_factory=lambda: torch.empty(0))


class Collector:
    """Commits one position per pass and keeps what a sampler would have seen: a `CommitPolicy`."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._at_work: dict[int, _Block] = {}

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        chosen = chosen_positions(ONE_PER_PASS, view)
        seen, (final, unknown) = Observation.of(view), committed(view, chosen)
        for place, row in enumerate(view.sequences):
            if view.passes[place] == 0:
                self._at_work[row] = _Block()
                self._blocks.append(self._at_work[row])
            block = self._at_work[row]
            block.states.append(_row(seen, place))
            block.masked.append(view.masked[place])
            # A stop can end a row before its block is complete: what is masked then has no final token.
            block.final, block.unknown = final[place], unknown[place]
        return chosen

    def examples(self, length: int) -> Examples:
        """Everything collected, in blocks of `length` positions."""
        seen, wanted, labels, blocks = [], [], [], []
        for number, block in enumerate(self._blocks):
            for state, masked in zip(block.states, block.masked, strict=True):
                width = len(masked)
                seen.append(_padded(state, length))
                known = masked & ~_to(block.unknown, width)
                wanted.append(_to(known, length))
                labels.append(_to(known & (state.top[:, 0] == _to(block.final, width)), length))
                blocks.append(number)
        if not any(known.any() for known in wanted):
            raise ValueError("block_length: no masked position was ever committed; a sampler needs blocks of 2 or more")
        whole = Observation(*(torch.stack([getattr(one, f.name) for one in seen]) for f in fields(Observation)))
        every = Examples(whole, torch.stack(wanted), torch.stack(labels), torch.tensor(blocks))
        return every.pick(torch.nonzero(every.wanted.any(1)).flatten())


def _row(seen: Observation, place: int) -> Observation:
    # Copies in few bytes: views would keep whole batches alive.
    return Observation(seen.top[place].int(), seen.statistics[place].clone(), seen.real[place].clone())


def _to(values: Tensor, length: int) -> Tensor:
    """The first `length` values, with zeros where there are fewer."""
    return F.pad(values[:length], (0, max(0, length - len(values))))


def _padded(seen: Observation, length: int) -> Observation:
    missing = length - len(seen.real)
    return Observation(
        top=F.pad(seen.top, (0, 0, 0, missing)).long(),
        statistics=F.pad(seen.statistics, (0, 0, 0, missing)),
        real=F.pad(seen.real, (0, missing)),
    )


def collect(engine: Engine, prompts: Sequence[Sequence[int]], options: DecodeOptions, batch_size: int) -> Examples:
    """Decodes prompts one token per pass and keeps every state.

    Args:
        engine: the model.
        prompts: ids of each.
        options: greedy.
        batch_size: most prompts at work at once.

    Raises:
        ValueError: no block had a mask whose token is known, as with a block length of 1.
    """
    collector = Collector()
    decode(engine, prompts, "diffusion", options, collector, batch_size=batch_size)
    return collector.examples(options.block_length)
