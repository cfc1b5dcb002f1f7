"""Generates texts in any mode, cut at their stop strings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import DecodeOptions, Mode
from nld_train.decoding.algorithms.outputs import Observer, Progress
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.evaluation.harness.requests import Generated, Generation, GenerationSettings, Scoring
from nld_train.progress import Advance


def generate(
    engine: Engine,
    requests: Sequence[Generation],
    batch_size: int,
    mode: Mode,
    options: Callable[[GenerationSettings, tuple[int, ...]], DecodeOptions],
    policy: CommitPolicy,
    to_text: Callable[[Sequence[int]], str],
    completed: Advance,
) -> list[Generated]:
    """Continues prompts; those with the same settings are decoded together, the longest first.

    Args:
        engine: the model.
        requests: prompts and settings.
        batch_size: maximum number of sequences that are decoded together.
        mode: of the decoder.
        options: the decoder's options from the texts' settings and their seeds.
        policy: commit policy of diffusion decoding.
        to_text: turns new ids into text.
        completed: called for each text that has ended.
    """
    found: dict[int, Generated] = {}
    groups: dict[GenerationSettings, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        groups[request.settings].append(index)
    for settings, indices in groups.items():
        indices.sort(key=lambda index: len(requests[index].prompt), reverse=True)
        group = [requests[index] for index in indices]
        decode_options = options(settings, tuple(request.seed for request in group))
        prompts = [request.prompt for request in group]
        observer = _count_endings(completed, [1] * len(group))
        chosen = policy if mode == "diffusion" else None
        result = decode(engine, prompts, mode, decode_options, chosen, observer, batch_size)
        for index, ids, forwards in zip(indices, result.token_ids, result.sequence_forwards, strict=True):
            found[index] = Generated(cut(to_text(ids), settings.stop_strings), len(ids), forwards)
    return [found[index] for index in range(len(requests))]


def _count_endings(completed: Advance, requests: Sequence[int]) -> Observer:
    """Calls `completed` as each sequence ends, with the number of requests that it answers."""

    def observe(progress: Progress) -> None:
        if progress.finish is not None:
            completed(requests[progress.sequence])

    return observe


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    return text[: min((start for stop in stops if (start := text.find(stop)) >= 0), default=len(text))]


def greedy_continuations(
    engine: Engine,
    requests: Sequence[Scoring],
    batch_size: int,
    options: Mapping[str, Any],
    policy: CommitPolicy,
    completed: Advance,
) -> list[bool]:
    """For each request, whether greedy diffusion decoding with these options gives the continuation."""
    found = [True] * len(requests)
    groups: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, request in enumerate(requests):
        groups[len(request.continuation)][request.context].append(index)
    for size, by_context in groups.items():
        contexts = sorted(by_context, key=len, reverse=True)
        observer = _count_endings(completed, [len(by_context[context]) for context in contexts])
        result = decode(engine, contexts, "diffusion", DecodeOptions(size, **options), policy, observer, batch_size)
        for context, ids in zip(contexts, result.token_ids, strict=True):
            for index in by_context[context]:
                found[index] = tuple(ids) == requests[index].continuation
    return found
