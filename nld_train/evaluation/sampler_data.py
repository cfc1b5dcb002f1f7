"""Block states of trajectories, as training examples of the trained sampler."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from nld_train.decoding import CommitPolicy, DecodeOptions, Engine
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


def joined(parts: Sequence[Examples]) -> Examples:
    """All states of several sets, padded to their longest blocks."""
    length = max(part.labels.shape[1] for part in parts)
    seen = [_padded(part.seen, length) for part in parts]
    firsts = [0, *itertools.accumulate(int(part.blocks.max()) + 1 for part in parts)]
    return Examples(
        Observation(*(torch.cat([getattr(one, f.name) for one in seen]) for f in fields(Observation))),
        torch.cat([_to(part.supervised, length) for part in parts]),
        torch.cat([_to(part.labels, length) for part in parts]),
        torch.cat([part.blocks + first for part, first in zip(parts, firsts, strict=False)]),
    )


class Collector:
    """A `CommitPolicy` that commits what another one does and stores the sampler's inputs."""

    def __init__(self, policy: CommitPolicy = ONE_PER_PASS) -> None:
        self._policy = policy
        self._blocks: list[_Block] = []
        self._current: dict[int, _Block] = {}

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        chosen = chosen_positions(self._policy, view)
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

    def examples(self, length: int) -> Examples | None:
        """The states with a mask whose token is known, padded to blocks of `length` positions; None without any."""
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
            return None
        whole = Observation(*(torch.stack([getattr(one, f.name) for one in seen]) for f in fields(Observation)))
        every = Examples(whole, torch.stack(supervised), torch.stack(labels), torch.tensor(blocks))
        return every.pick(torch.nonzero(every.supervised.any(1)).flatten())


def _row(seen: Observation, row: int) -> Observation:
    # Small copies: views would keep whole batches in memory.
    return Observation(seen.top[row].int(), seen.statistics[row].clone(), seen.real[row].clone())


def _to(values: Tensor, length: int) -> Tensor:
    """The first `length` values of the last dimension, with zeros where there are fewer."""
    return F.pad(values[..., :length], (0, max(0, length - values.shape[-1])))


def _padded(seen: Observation, length: int) -> Observation:
    missing = length - seen.real.shape[-1]
    return Observation(
        top=F.pad(seen.top, (0, 0, 0, missing)).long(),
        statistics=F.pad(seen.statistics, (0, 0, 0, missing)),
        real=F.pad(seen.real, (0, missing)),
    )


def collect(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    batch_size: int,
    policy: CommitPolicy = ONE_PER_PASS,
) -> Examples | None:
    """Decodes prompts by diffusion under a policy and collects every state.

    Args:
        engine: the model.
        prompts: ids of each.
        options: greedy.
        batch_size: maximum number of sequences that are decoded together.
        policy: of the trajectories.

    Returns:
        None where no block had a mask whose token is known, as with a block length of 1.
    """
    collector = Collector(policy)
    what = "one token per pass" if policy is ONE_PER_PASS else "towards the true text"
    what = f"{what}, blocks of {options.block_length}"
    with decoding_progress(what, len(prompts), options.max_new_tokens) as observer:
        decode(engine, prompts, "diffusion", options, collector, observer(), batch_size)
    return collector.examples(options.block_length)
