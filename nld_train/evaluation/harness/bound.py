"""A lower bound on the log-likelihood of continuations under the diffusion reading of the weights."""

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
from nld_train.evaluation.harness.progress import Answered
from nld_train.evaluation.harness.requests import Scoring, batches
from nld_train.evaluation.measure import LOGITS_AT_ONCE
from nld_train.masking.visibility import Coordinates, visible

# Tokens of a step's row beside the context: its mask of visibility has the square of them.
TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class BoundSettings:
    """How the bound is estimated.

    Attributes:
        block_length: B; blocks begin with the continuation.
        samples: most copies of a block.
        seed: of the noise.
        tokens_at_once: most tokens of a row in one forward, beside its context; a single copy may be longer.
        logits_at_once: most logits that one forward returns.
    """

    block_length: int
    samples: int
    seed: int = 0
    tokens_at_once: int = TOKENS_AT_ONCE
    logits_at_once: int = LOGITS_AT_ONCE


def score_by_bound(
    engine: Engine, requests: Sequence[Scoring], batch_size: int, settings: BoundSettings, answered: Answered
) -> list[tuple[float, float]]:
    """The bound and its standard error for each request, in nats (docs/harness.md, "The bound"); `answered` is told.

    A context is read once for all its continuations. Copies of a continuation follow each other in one row, each seeing
    the context, the clean tokens of its earlier blocks, and its own hidden block.
    """
    found = [(0.0, 0.0)] * len(requests)
    answered(sum(not request.continuation for request in requests))
    askers: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        if request.continuation:
            askers[request.context].append(index)
    # Contexts with the most continuations first: the others can leave the cache when theirs are done.
    contexts = sorted(askers, key=lambda context: (len(askers[context]), len(context)), reverse=True)
    for rows in batches(contexts, batch_size):
        _read_contexts(engine, rows, max(len(requests[i].continuation) for row in rows for i in askers[row]), settings)
        for turn in range(len(askers[rows[0]])):
            going = [row for row in rows if len(askers[row]) > turn]
            if turn > 0:
                engine.keep_slots(torch.arange(len(going)))
            indices = [askers[row][turn] for row in going]
            for index, result in zip(indices, _bounds(engine, [requests[i] for i in indices], settings), strict=True):
                found[index] = result
            answered(len(indices))
    return found


def _read_contexts(engine: Engine, contexts: Sequence[Sequence[int]], longest: int, settings: BoundSettings) -> None:
    """Leaves the contexts in the cache, with room for the copies of a continuation of `longest` tokens."""
    sizes = torch.tensor([len(context) for context in contexts])
    tokens = torch.full((len(contexts), int(sizes.max())), engine.mask_token_id)
    for place, context in enumerate(contexts):
        tokens[place, : len(context)] = torch.tensor(context)
    engine.allocate(len(contexts), tokens.shape[1] + max(settings.tokens_at_once, 2 * longest))
    engine.forward(
        Step(
            tokens=tokens,
            positions=torch.arange(tokens.shape[1]).expand(len(contexts), -1),
            counts=sizes,
            cached=torch.zeros_like(sizes),
            causal=torch.ones(len(contexts), dtype=torch.bool),
            outputs=torch.zeros(len(contexts), 1, dtype=torch.int64),
        )
    )


def _bounds(engine: Engine, requests: Sequence[Scoring], settings: BoundSettings) -> list[tuple[float, float]]:
    masks = [_masks(request, settings) for request in requests]
    values = [torch.zeros(mask.masked.shape, dtype=torch.float64) for mask in masks]
    for first, count in _turns(engine, masks, settings):
        rows = [
            _Row.of(request, mask, slice(first, first + count), settings.block_length, engine.mask_token_id)
            for request, mask in zip(requests, masks, strict=True)
        ]
        for row, value, found in zip(rows, values, _run(engine, requests, rows), strict=True):
            part = value[first : first + count]
            part[row.masked] = found
    return [(mask.total(value), mask.standard_error(value)) for mask, value in zip(masks, values, strict=True)]


def _masks(request: Scoring, settings: BoundSettings) -> Masks:
    """Noise that is a function of the seed and the context alone: of no batch, rank or order."""
    name = hashlib.blake2b(repr(request.context).encode(), digest_size=16).hexdigest()
    return draw_masks(len(request.continuation), settings.block_length, settings.samples, settings.seed, name)


def _turns(engine: Engine, masks: Sequence[Masks], settings: BoundSettings) -> Iterator[tuple[int, int]]:
    """First copy and number of copies of each forward, within both limits."""
    longest = max(mask.masked.shape[1] for mask in masks)
    by_tokens = settings.tokens_at_once // longest - 1
    by_logits = settings.logits_at_once // (len(masks) * engine.vocabulary_size * longest)
    count = max(1, min(by_tokens, by_logits))
    for first in range(0, max(len(mask.masked) for mask in masks), count):
        yield first, count


@dataclass(frozen=True)
class _Row:
    """`[clean blocks but the last | copy | copy | ..]` of one continuation of m tokens.

    Attributes:
        tokens: int64 `[T]`.
        places: int64 `[T]`, counted from the continuation's start.
        pattern: bool `[T, T]` (query, key).
        masked: bool `[c, m]` of these copies.
        outputs: int64 `[r]`, where the hidden tokens stand in the row.
        targets: int64 `[r]`, what they are.
    """

    tokens: Tensor
    places: Tensor
    pattern: Tensor
    masked: Tensor
    outputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, request: Scoring, masks: Masks, copies: slice, block_length: int, mask_token_id: int) -> _Row:
        continuation = torch.tensor(request.continuation)
        size, masked = len(continuation), masks.masked[copies]
        clean = (size - 1) // block_length * block_length
        places = torch.cat([torch.arange(clean), torch.arange(size).repeat(len(masked))])
        copy = torch.cat([torch.full((clean,), -1), torch.arange(len(masked)).repeat_interleave(size)])
        row, place = masked.nonzero(as_tuple=True)
        return cls(
            tokens=torch.cat([continuation[:clean], torch.where(masked, mask_token_id, continuation).flatten()]),
            places=places,
            pattern=copies_pattern(places, copy, block_length),
            masked=masked,
            outputs=clean + row * size + place,
            targets=continuation[place],
        )


def copies_pattern(places: Tensor, copy: Tensor, block_length: int) -> Tensor:
    """Training's rule between the streams, with several noisy copies that do not see each other: bool `[T, T]`.

    Args:
        places: int64 `[T]`, place in the continuation.
        copy: int64 `[T]`, number of the noisy copy, -1 for the clean stream.
        block_length: B.
    """
    tokens = Coordinates(copy >= 0, places, places // block_length, torch.zeros_like(places))
    same_copy = copy[:, None] == copy[None, :]
    return visible(tokens.expand(1), tokens.expand(0)) & (same_copy | (copy < 0)[None, :])


def _run(engine: Engine, requests: Sequence[Scoring], rows: Sequence[_Row]) -> list[Tensor]:
    """Log-probabilities float64 `[r]` of each row's hidden tokens."""
    width = max(1, *(len(row.tokens) for row in rows))
    wanted = max(1, *(len(row.outputs) for row in rows))
    cached = torch.tensor([len(request.context) for request in requests])
    tokens = torch.full((len(rows), width), engine.mask_token_id)
    places = torch.zeros(len(rows), width, dtype=torch.int64)
    pattern = torch.zeros(len(rows), width, width, dtype=torch.bool)
    outputs = torch.zeros(len(rows), wanted, dtype=torch.int64)
    for number, row in enumerate(rows):
        length = len(row.tokens)
        tokens[number, :length], places[number, :length] = row.tokens, row.places
        pattern[number, :length, :length] = row.pattern
        outputs[number, : len(row.outputs)] = row.outputs
    step = Step(
        tokens=tokens,
        positions=cached[:, None] + places,
        counts=torch.tensor([max(1, len(row.tokens)) for row in rows]),
        cached=cached,
        causal=torch.zeros(len(rows), dtype=torch.bool),
        pattern=pattern,
        outputs=outputs,
    )
    values = log_probabilities(engine, step)
    return [values[number, torch.arange(len(row.targets)), row.targets].double() for number, row in enumerate(rows)]
