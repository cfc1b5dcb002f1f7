"""Block states of one-token-per-pass decoding, as training examples of the trained sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding import DecodeOptions, Engine
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.policies.commit import BlockView, chosen_positions
from nld_train.decoding.policies.sampler_network import Observation
from nld_train.evaluation.measure import decoding_progress
from nld_train.evaluation.trajectories import ONE_PER_PASS, committed


@dataclass(frozen=True)
class Examples:
    """States of partly denoised blocks, and which of their predictions were right.

    Attributes:
        seen: the sampler's inputs of n states of blocks of T positions.
        supervised: bool `[n, T]`, masked positions whose final token is known.
        labels: bool `[n, T]`, whether the most likely token of this state is the one that was finally committed.
        blocks: int64 `[n]`, the index of each state's block.
    """

    seen: Observation
    supervised: Tensor
    labels: Tensor
    blocks: Tensor

    def __len__(self) -> int:
        return len(self.blocks)

    def pick(self, index: Tensor) -> Examples:
        """The states at int64 `[m]` `index`."""
        seen = Observation(self.seen.top[index], self.seen.statistics[index], self.seen.real[index])
        return Examples(seen, self.supervised[index], self.labels[index], self.blocks[index])


@dataclass
class _Block:
    states: list[Observation] = field(default_factory=list)
    masked: list[Tensor] = field(default_factory=list)
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    unknown: Tensor = field(default_factory=lambda: torch.empty(0))


class Collector:
    """A `CommitPolicy` that commits one position per pass and stores the sampler's inputs."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._current: dict[int, _Block] = {}

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        chosen = chosen_positions(ONE_PER_PASS, view)
        seen, (final, unknown) = Observation.of(view).cpu(), committed(view, chosen)
        for row, sequence in enumerate(view.sequences):
            if view.passes[row] == 0:
                self._current[sequence] = _Block()
                self._blocks.append(self._current[sequence])
            block = self._current[sequence]
            block.states.append(_row(seen, row))
            block.masked.append(view.masked[row])
            # A stop can end a sequence before its block is complete: the remaining masks have no final token.
            block.final, block.unknown = final[row], unknown[row]
        return chosen

    def examples(self, length: int) -> Examples:
        """All states, padded to blocks of `length` positions."""
        seen, supervised, labels, blocks = [], [], [], []
        for number, block in enumerate(self._blocks):
            for state, masked in zip(block.states, block.masked, strict=True):
                width = len(masked)
                seen.append(_padded(state, length))
                known = masked & ~_to(block.unknown, width)
                supervised.append(_to(known, length))
                labels.append(_to(known & (state.top[:, 0] == _to(block.final, width)), length))
                blocks.append(number)
        if not any(known.any() for known in supervised):
            raise ValueError("block_length: no masked position was ever committed; a sampler needs blocks of 2 or more")
        whole = Observation(*(torch.stack([getattr(one, f.name) for one in seen]) for f in fields(Observation)))
        every = Examples(whole, torch.stack(supervised), torch.stack(labels), torch.tensor(blocks))
        return every.pick(torch.nonzero(every.supervised.any(1)).flatten())


def _row(seen: Observation, row: int) -> Observation:
    # Small copies: views would keep whole batches in memory.
    return Observation(seen.top[row].int(), seen.statistics[row].clone(), seen.real[row].clone())


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
    """Decodes prompts one token per pass and collects every state.

    Args:
        engine: the model.
        prompts: ids of each.
        options: greedy.
        batch_size: maximum number of sequences that are decoded together.

    Raises:
        ValueError: no block had a mask whose token is known, as with a block length of 1.
    """
    collector = Collector()
    with decoding_progress("one token per pass", len(prompts), options.max_new_tokens) as observer:
        decode(engine, prompts, "diffusion", options, collector, observer(), batch_size)
    return collector.examples(options.block_length)
