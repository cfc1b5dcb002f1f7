"""Block states of two kinds of trajectories, as training examples of the trained sampler (docs/method.md)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

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


class TrueText:
    """A `CommitPolicy` that commits every prediction that is the true text's; where there is none, the most confident.

    Args:
        texts: by sequence, the true tokens of its one block.
    """

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = texts

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        right = torch.zeros_like(view.masked)
        for row, sequence in enumerate(view.sequences):
            true = torch.tensor(self._texts[sequence])
            right[row, : len(true)] = view.sampled[row, : len(true)] == true
        return view.masked & right


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


@dataclass(frozen=True)
class TrueBlock:
    """A block of true text and everything before it.

    Attributes:
        before: ids of the prompt and of the true text up to the block.
        tokens: ids of the block.
    """

    before: tuple[int, ...]
    tokens: tuple[int, ...]


def true_blocks(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int] | None],
    options: DecodeOptions,
    context_length: int,
) -> list[TrueBlock]:
    """The blocks of the true text after each prompt, up to `options.max_new_tokens`; those that fit into the context.

    The last block of a text that ends with a stop token is filled with it, as in training; of another text, which has
    been cut somewhere, an incomplete block is left out.
    """
    length, found = options.block_length, []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        true = tuple(continuation or ())
        if true and true[-1] in options.stop_tokens:
            true += true[-1:] * (-len(true) % length)
        for start in range(0, min(len(true), options.max_new_tokens), length):
            block, before = true[start : start + length], (*prompt, *true[:start])
            if len(block) == length and len(before) + length <= context_length:
                found.append(TrueBlock(before, block))
    return found


@dataclass(frozen=True)
class Trajectories:
    """Examples of both kinds and of all block lengths, and how many there are of each kind.

    Attributes:
        examples: all states.
        one_per_pass: blocks that were decoded one token per pass.
        true_text: blocks that were decoded towards the true text.
    """

    examples: Examples
    one_per_pass: int
    true_text: int


def collect_both(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int] | None],
    settings: Sequence[DecodeOptions],
    batch_size: int,
) -> Trajectories:
    """Examples of trajectories of both kinds, at several block lengths.

    Args:
        engine: the model.
        prompts: ids of each.
        continuations: the true text after each prompt, of a conversation the answer alone; None where it is not known,
            and there is no trajectory of the second kind.
        settings: greedy options, one for each block length.
        batch_size: maximum number of sequences that are decoded together.

    Raises:
        ValueError: no block had a mask whose token is known.
    """
    slow: list[Examples | None] = []
    towards: list[Examples | None] = []
    for options in settings:
        slow.append(collect(engine, prompts, options, batch_size))
        blocks = true_blocks(prompts, continuations, options, engine.context_length)
        if blocks:
            own = replace(options, max_new_tokens=options.block_length)
            policy = TrueText([block.tokens for block in blocks])
            towards.append(collect(engine, [block.before for block in blocks], own, batch_size, policy))
    found = [part for part in (*slow, *towards) if part is not None]
    if not found:
        raise ValueError("block_length: no masked position was ever committed; a sampler needs blocks of 2 or more")
    return Trajectories(joined(found), _blocks(slow), _blocks(towards))


def _blocks(parts: Sequence[Examples | None]) -> int:
    return sum(len(part.blocks.unique()) for part in parts if part is not None)
