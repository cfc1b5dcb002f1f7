"""The exact log-likelihood of continuations under the AR reading of the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from nld_train.decoding.engines.engine import Engine, Step
from nld_train.evaluation.harness.progress import Answered
from nld_train.evaluation.harness.requests import Score, Scoring, batches
from nld_train.evaluation.measure import LOGITS_AT_ONCE


def score_exactly(
    engine: Engine,
    requests: Sequence[Scoring],
    batch_size: int,
    answered: Answered,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> list[Score]:
    """Sums of log-probabilities of the continuations' tokens, each given all before it.

    Requests whose inputs are the same, such as choices of one token after one context, share a row.

    Args:
        engine: the model.
        requests: contexts and continuations, together within the context length and one token more.
        batch_size: rows that run together.
        answered: told of the requests of each batch.
        logits_at_once: long continuations are read in pieces, so that no step returns more values than these.
    """
    askers: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        if request.continuation:
            askers[request.inputs].append(index)
    sums = [0.0] * len(requests)
    greedy = [True] * len(requests)
    answered(sum(not request.continuation for request in requests))
    for rows in batches(sorted(askers, key=len, reverse=True), batch_size):
        first = min(len(requests[index].context) for row in rows for index in askers[row]) - 1
        for begin, values in _predictions(engine, rows, first, logits_at_once):
            for place, row in enumerate(rows):
                for index in askers[row]:
                    total, same = _within(requests[index], begin, values[place])
                    sums[index] += total
                    greedy[index] &= same
        answered(sum(len(askers[row]) for row in rows))
    return [Score(total, same) for total, same in zip(sums, greedy, strict=True)]


def _predictions(
    engine: Engine, rows: Sequence[Sequence[int]], first: int, logits_at_once: int
) -> Iterator[tuple[int, Tensor]]:
    """Runs rows causally, the longest first; yields places and log-probabilities `[a, R, V]` from place `first` on."""
    sizes = torch.tensor([len(row) for row in rows])
    width = len(rows[0])
    tokens = torch.full((len(rows), width), engine.mask_token_id)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    piece = max(1, logits_at_once // (len(rows) * engine.vocabulary_size))
    engine.allocate(len(rows), width)
    start = 0
    for begin, end in pairwise([*range(first, width, piece), width]):
        # A row that has ended reads one more token of padding, which nobody looks at.
        cached = sizes.clamp(max=start)
        step = Step(
            tokens=tokens[:, start:end],
            positions=(cached[:, None] + torch.arange(end - start)).clamp(max=width - 1),
            counts=(sizes - start).clamp(1, end - start),
            cached=cached,
            causal=torch.ones(len(rows), dtype=torch.bool),
            outputs=torch.arange(begin - start, end - start).expand(len(rows), -1),
        )
        yield begin, log_probabilities(engine, step)
        start = end


def log_probabilities(engine: Engine, step: Step) -> Tensor:
    """float32 `[a, R, V]` of a step; the mask token has none, in no mode."""
    logits = engine.forward(step).float()
    logits[..., engine.mask_token_id] = float("-inf")
    return logits.log_softmax(-1).cpu()


def _within(request: Scoring, begin: int, values: Tensor) -> tuple[float, bool]:
    """The part of a continuation that log-probabilities `[R, V]` at places from `begin` on predict.

    Returns:
        The sum of its tokens' log-probabilities, and whether each is the most likely one.
    """
    offset = begin - (len(request.context) - 1)
    targets = request.continuation[max(0, offset) : max(0, offset + len(values))]
    if not targets:
        return 0.0, True
    wanted = torch.tensor(targets)
    lines = values[max(0, -offset) :][: len(targets)]
    found = lines.gather(1, wanted[:, None]).double().sum()
    return float(found), bool((lines.argmax(-1) == wanted).all())
