"""The two kinds of trajectories from which the trained sampler learns (docs/method.md, "Trained sampler")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nld_train.decoding import DecodeOptions, Engine
from nld_train.decoding.policies.commit import BlockView
from nld_train.evaluation.greedy_acceptance import GreedyAcceptance, fitted
from nld_train.evaluation.sampler_data import Examples, collect, joined


class TrueText:
    """True text as the targets of `GreedyAcceptance`.

    Args:
        blocks: the true tokens of the one block of each sequence.
    """

    def __init__(self, blocks: Sequence[Sequence[int]]) -> None:
        self._blocks = dict(enumerate(blocks))

    def of(self, view: BlockView) -> Tensor:
        """See `Targets.of`."""
        return fitted(view, self._blocks)


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
            policy = GreedyAcceptance(TrueText([block.tokens for block in blocks]))
            towards.append(collect(engine, [block.before for block in blocks], own, batch_size, policy))
    found = [part for part in (*slow, *towards) if part is not None]
    if not found:
        raise ValueError("block_length: no masked position was ever committed; a sampler needs blocks of 2 or more")
    return Trajectories(joined(found), _blocks(slow), _blocks(towards))


def _blocks(parts: Sequence[Examples | None]) -> int:
    return sum(len(part.blocks.unique()) for part in parts if part is not None)
