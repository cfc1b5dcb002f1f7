"""The exact log-likelihood of continuations in AR mode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from nld_train.decoding.engines.engine import Engine, Step
from nld_train.evaluation.harness.requests import Score, Scoring, batches
from nld_train.evaluation.measure import LOGITS_AT_ONCE
from nld_train.progress import Advance


def score_exactly(
    engine: Engine,
    requests: Sequence[Scoring],
    batch_size: int,
    completed: Advance,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> list[Score]:
    """Sums of log-probabilities of the continuations' tokens, each given all tokens before it.

    Requests with the same inputs, such as choices of one token after one context, share a sequence.

    Args:
        engine: the model.
        requests: contexts and continuations, together at most the context length plus one token.
        batch_size: sequences that run together.
        completed: called after each batch.
        logits_at_once: maximum number of logits that one forward returns; longer continuations are split.
    """
    by_inputs: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        by_inputs[request.inputs].append(index)
    sums = [0.0] * len(requests)
    greedy = [True] * len(requests)
    for batch in batches(sorted(by_inputs, key=len, reverse=True), batch_size):
        first = min(len(requests[index].context) for inputs in batch for index in by_inputs[inputs]) - 1
        for begin, values in _predictions(engine, batch, first, logits_at_once):
            for slot, inputs in enumerate(batch):
                for index in by_inputs[inputs]:
                    total, same = _within(requests[index], begin, values[slot])
                    sums[index] += total
                    greedy[index] &= same
        completed(sum(len(by_inputs[inputs]) for inputs in batch))
    return [Score(total, same) for total, same in zip(sums, greedy, strict=True)]


def _predictions(
    engine: Engine, sequences: Sequence[Sequence[int]], first: int, logits_at_once: int
) -> Iterator[tuple[int, Tensor]]:
    """Runs sequences causally, the longest first.

    Yields:
        A position and the log-probabilities `[a, R, V]` at the R positions from it on; together all from `first` on.
    """
    sizes = torch.tensor([len(sequence) for sequence in sequences])
    width = len(sequences[0])
    tokens = torch.full((len(sequences), width), engine.mask_token_id)
    for slot, sequence in enumerate(sequences):
        tokens[slot, : len(sequence)] = torch.tensor(sequence)
    piece = max(1, logits_at_once // (len(sequences) * engine.vocabulary_size))
    engine.allocate(len(sequences), width)
    start = 0
    for begin, end in pairwise([*range(first, width, piece), width]):
        # A sequence that has ended runs one more token of padding, whose logits are not used.
        cached = sizes.clamp(max=start)
        step = Step(
            tokens=tokens[:, start:end],
            positions=(cached[:, None] + torch.arange(end - start)).clamp(max=width - 1),
            counts=(sizes - start).clamp(1, end - start),
            cached=cached,
            causal=torch.ones(len(sequences), dtype=torch.bool),
            outputs=torch.arange(begin - start, end - start).expand(len(sequences), -1),
        )
        yield begin, log_probabilities(engine, step)
        start = end


def log_probabilities(engine: Engine, step: Step) -> Tensor:
    """Log-probabilities float32 `[a, R, V]` of a step; that of the mask token is minus infinity in every mode."""
    logits = engine.forward(step).float()
    logits[..., engine.mask_token_id] = float("-inf")
    return logits.log_softmax(-1).cpu()


def _within(request: Scoring, begin: int, values: Tensor) -> tuple[float, bool]:
    """Scores the part of a continuation that log-probabilities `[R, V]` at positions from `begin` on predict.

    Returns:
        The sum of its tokens' log-probabilities, and whether each is the most likely one.
    """
    offset = begin - (len(request.context) - 1)
    targets = request.continuation[max(0, offset) : max(0, offset + len(values))]
    if not targets:
        return 0.0, True
    expected = torch.tensor(targets)
    rows = values[max(0, -offset) :][: len(targets)]
    found = rows.gather(1, expected[:, None]).double().sum()
    return float(found), bool((rows.argmax(-1) == expected).all())
