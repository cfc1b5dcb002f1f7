"""Texts in any mode, cut at their stop strings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.algorithms.outputs import Observer, Progress
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.evaluation.harness.progress import Answered
from nld_train.evaluation.harness.requests import Generated, Generation, Sampling, Scoring


def generate(
    engine: Engine,
    requests: Sequence[Generation],
    batch_size: int,
    mode: Mode,
    options: Callable[[Sampling, tuple[int, ...]], DecodeOptions],
    policy: CommitPolicy,
    to_text: Callable[[Sequence[int]], str],
    answered: Answered,
) -> list[Generated]:
    """Continues prompts; those with the same settings together, the longest first.

    Args:
        engine: the model.
        requests: prompts and settings.
        batch_size: most prompts at work at once.
        mode: how.
        options: the decoder's options from texts' settings and their seeds.
        policy: what a denoising pass of diffusion commits.
        to_text: turns new ids into text.
        answered: told of each text that has ended.
    """
    found: dict[int, Generated] = {}
    groups: dict[Sampling, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        groups[request.sampling].append(index)
    for sampling, indices in groups.items():
        indices.sort(key=lambda index: len(requests[index].prompt), reverse=True)
        rows = [requests[index] for index in indices]
        settings = options(sampling, tuple(row.seed for row in rows))
        prompts = [row.prompt for row in rows]
        observer = _each_ending(answered, [1] * len(rows))
        result = decode(engine, prompts, mode, settings, policy if mode == "diffusion" else None, observer, batch_size)
        for index, ids, forwards in zip(indices, result.token_ids, result.sequence_forwards, strict=True):
            found[index] = Generated(cut(to_text(ids), sampling.stop_strings), len(ids), forwards)
    return [found[index] for index in range(len(requests))]


def _each_ending(answered: Answered, requests: Sequence[int]) -> Observer:
    """Tells, as each row ends, how many requests that answers."""

    def observe(progress: Progress) -> None:
        if progress.finish is not None:
            answered(requests[progress.sequence])

    return observe


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def greedy_continuations(
    engine: Engine,
    requests: Sequence[Scoring],
    batch_size: int,
    block_length: int,
    policy: CommitPolicy,
    answered: Answered,
) -> list[bool]:
    """Would greedy diffusion decoding of as many tokens give the continuation? `answered` is told of each request."""
    found = [True] * len(requests)
    answered(sum(not request.continuation for request in requests))
    groups: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, request in enumerate(requests):
        if request.continuation:
            groups[len(request.continuation)][request.context].append(index)
    for size, askers in groups.items():
        settings: dict[str, Any] = {"max_new_tokens": size, "block_length": block_length}
        contexts = sorted(askers, key=len, reverse=True)
        observer = _each_ending(answered, [len(askers[context]) for context in contexts])
        result = decode(engine, contexts, "diffusion", DecodeOptions(**settings), policy, observer, batch_size)
        for context, ids in zip(contexts, result.token_ids, strict=True):
            for index in askers[context]:
                found[index] = tuple(ids) == requests[index].continuation
    return found
