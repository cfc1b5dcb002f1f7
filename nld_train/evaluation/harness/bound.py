"""A lower bound on the log-likelihood of continuations in diffusion mode (docs/harness.md, "The bound")."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.engines.engine import Engine, Step
from nld_train.evaluation.harness.likelihood import log_probabilities
from nld_train.evaluation.harness.masks import Masks, draw_masks
from nld_train.evaluation.harness.requests import Scoring, batches
from nld_train.evaluation.measure import LOGITS_AT_ONCE
from nld_train.masking.visibility import Coordinates, visible
from nld_train.progress import Advance

# Tokens of a sequence in one step, without its context: the attention mask grows with their square.
TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class BoundSettings:
    """How the bound is estimated.

    Attributes:
        block_length: B; blocks begin with the continuation.
        samples: maximum number of copies of a block.
        seed: of the noise.
        tokens_at_once: maximum number of tokens of a sequence in one forward, without its context; a single copy may be
            longer.
        logits_at_once: maximum number of logits that one forward returns.
    """

    block_length: int
    samples: int
    seed: int = 0
    tokens_at_once: int = TOKENS_AT_ONCE
    logits_at_once: int = LOGITS_AT_ONCE


def score_by_bound(
    engine: Engine, requests: Sequence[Scoring], batch_size: int, settings: BoundSettings, completed: Advance
) -> list[tuple[float, float]]:
    """The bound and its standard error for each request, in nats; `completed` is called after each forward.

    A context is prefilled once for all its continuations. Noisy copies of a continuation follow each other in one
    sequence; each sees the context, the clean tokens of its earlier blocks, and its own masked block.
    """
    found = [(0.0, 0.0)] * len(requests)
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        by_context[request.context].append(index)
    # Contexts with the most continuations first, so that the slots of the others can be freed before.
    contexts = sorted(by_context, key=lambda context: (len(by_context[context]), len(context)), reverse=True)
    for batch in batches(contexts, batch_size):
        longest = max(len(requests[i].continuation) for context in batch for i in by_context[context])
        _prefill_contexts(engine, batch, longest, settings)
        for turn in range(len(by_context[batch[0]])):
            remaining = [context for context in batch if len(by_context[context]) > turn]
            if turn > 0:
                engine.keep_slots(torch.arange(len(remaining)))
            indices = [by_context[context][turn] for context in remaining]
            for index, result in zip(indices, _bounds(engine, [requests[i] for i in indices], settings), strict=True):
                found[index] = result
            completed(len(indices))
    return found


def _prefill_contexts(engine: Engine, contexts: Sequence[Sequence[int]], longest: int, settings: BoundSettings) -> None:
    """Prefills the contexts; the cache has room for the copies of a continuation of `longest` tokens."""
    sizes = torch.tensor([len(context) for context in contexts])
    tokens = torch.full((len(contexts), int(sizes.max())), engine.mask_token_id)
    for slot, context in enumerate(contexts):
        tokens[slot, : len(context)] = torch.tensor(context)
    engine.allocate(len(contexts), tokens.shape[1] + max(settings.tokens_at_once, 2 * longest))
    engine.forward(
        Step(
            tokens=tokens,
            positions=torch.arange(tokens.shape[1]).expand(len(contexts), -1),
            counts=sizes,
            cached=torch.zeros_like(sizes),
            causal=torch.ones(len(contexts), dtype=torch.bool),
            pattern=engine.clean_stream.prompt_pattern(tokens.shape[1]),
            outputs=torch.zeros(len(contexts), 1, dtype=torch.int64),
        )
    )


def _bounds(engine: Engine, requests: Sequence[Scoring], settings: BoundSettings) -> list[tuple[float, float]]:
    masks = [_masks(request, settings) for request in requests]
    values = [torch.zeros(mask.masked.shape, dtype=torch.float64) for mask in masks]
    for first, count in _pieces(engine, masks, settings):
        sequences = [
            _CopySequence.of(engine, request, mask, slice(first, first + count), settings.block_length)
            for request, mask in zip(requests, masks, strict=True)
        ]
        for sequence, value, found in zip(sequences, values, _run(engine, requests, sequences), strict=True):
            part = value[first : first + count]
            part[sequence.masked] = found
    return [(mask.total(value), mask.standard_error(value)) for mask, value in zip(masks, values, strict=True)]


def _masks(request: Scoring, settings: BoundSettings) -> Masks:
    """Noise that depends on the seed and the context alone, not on batch, rank or order."""
    name = hashlib.blake2b(repr(request.context).encode(), digest_size=16).hexdigest()
    return draw_masks(len(request.continuation), settings.block_length, settings.samples, settings.seed, name)


def _pieces(engine: Engine, masks: Sequence[Masks], settings: BoundSettings) -> Iterator[tuple[int, int]]:
    """Index of the first copy and number of copies of each forward, within both limits."""
    longest = max(mask.masked.shape[1] for mask in masks)
    by_tokens = settings.tokens_at_once // longest - 1
    by_logits = settings.logits_at_once // (len(masks) * engine.vocabulary_size * longest)
    count = max(1, min(by_tokens, by_logits))
    for first in range(0, max(len(mask.masked) for mask in masks), count):
        yield first, count


@dataclass(frozen=True)
class _CopySequence:
    """`[clean blocks but the last | copy | copy | ..]` of one continuation of m tokens.

    Attributes:
        tokens: int64 `[T]`.
        positions: int64 `[T]`, counted from the continuation's start.
        pattern: bool `[T, T]` (query, key).
        masked: bool `[c, m]` of these copies.
        outputs: int64 `[r]`, indices of the masked tokens in the sequence.
        targets: int64 `[r]`, their clean tokens.
    """

    tokens: Tensor
    positions: Tensor
    pattern: Tensor
    masked: Tensor
    outputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, engine: Engine, request: Scoring, masks: Masks, copies: slice, block_length: int) -> _CopySequence:
        continuation = torch.tensor(request.continuation)
        size, masked = len(continuation), masks.masked[copies]
        clean = (size - 1) // block_length * block_length
        positions = torch.cat([torch.arange(clean), torch.arange(size).repeat(len(masked))])
        copy = torch.cat([torch.full((clean,), -1), torch.arange(len(masked)).repeat_interleave(size)])
        row, position = masked.nonzero(as_tuple=True)
        return cls(
            tokens=torch.cat([continuation[:clean], torch.where(masked, engine.mask_token_id, continuation).flatten()]),
            positions=positions,
            pattern=copies_pattern(positions, copy, block_length, engine.clean_stream.block is not None),
            masked=masked,
            outputs=clean + row * size + position,
            targets=continuation[position],
        )


def copies_pattern(positions: Tensor, copy: Tensor, block_length: int, whole_blocks: bool = False) -> Tensor:
    """The visibility of training, with several noisy copies that do not see each other: bool `[T, T]`.

    Args:
        positions: int64 `[T]`, counted from the continuation's start.
        copy: int64 `[T]`, index of the noisy copy, -1 for the clean stream.
        block_length: B.
        whole_blocks: whether clean tokens see their whole block.
    """
    block = positions // block_length
    clean = (block + 1) * block_length if whole_blocks else positions + 1
    sees = torch.where(copy >= 0, block * block_length, clean)
    tokens = Coordinates(copy >= 0, positions, block, sees, torch.zeros_like(positions))
    same_copy = copy[:, None] == copy[None, :]
    return visible(tokens.expand(1), tokens.expand(0)) & (same_copy | (copy < 0)[None, :])


def _run(engine: Engine, requests: Sequence[Scoring], sequences: Sequence[_CopySequence]) -> list[Tensor]:
    """Log-probabilities float64 `[r]` of each sequence's masked tokens."""
    width = max(1, *(len(sequence.tokens) for sequence in sequences))
    most_outputs = max(1, *(len(sequence.outputs) for sequence in sequences))
    cached = torch.tensor([len(request.context) for request in requests])
    tokens = torch.full((len(sequences), width), engine.mask_token_id)
    positions = torch.zeros(len(sequences), width, dtype=torch.int64)
    pattern = torch.zeros(len(sequences), width, width, dtype=torch.bool)
    outputs = torch.zeros(len(sequences), most_outputs, dtype=torch.int64)
    for slot, sequence in enumerate(sequences):
        length = len(sequence.tokens)
        tokens[slot, :length], positions[slot, :length] = sequence.tokens, sequence.positions
        pattern[slot, :length, :length] = sequence.pattern
        outputs[slot, : len(sequence.outputs)] = sequence.outputs
    step = Step(
        tokens=tokens,
        positions=cached[:, None] + positions,
        counts=torch.tensor([max(1, len(sequence.tokens)) for sequence in sequences]),
        cached=cached,
        causal=torch.zeros(len(sequences), dtype=torch.bool),
        pattern=pattern,
        outputs=outputs,
    )
    values = log_probabilities(engine, step)
    return [
        values[slot, torch.arange(len(sequence.targets)), sequence.targets].double()
        for slot, sequence in enumerate(sequences)
    ]
