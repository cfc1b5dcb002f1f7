"""One rank's answers: requests in ids to scores and texts, read from its own copy of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.algorithms.stop_strings import stopping
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.load import Source
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.evaluation.harness.bound import BoundSettings, score_by_bound
from nld_train.evaluation.harness.generation import generate, greedy_continuations
from nld_train.evaluation.harness.likelihood import score_exactly
from nld_train.evaluation.harness.progress import Answered, progress_bar
from nld_train.evaluation.harness.requests import Generated, Generation, Sampling, Score, Scoring
from nld_train.evaluation.harness.settings import ReadingSettings


class Reader:
    """Answers requests in ids on one rank.

    Args:
        engine: the model.
        source: its checkpoint.
        settings: how to read it.
        policy: what a denoising pass of diffusion commits.
        shows: whether this rank shows how far it is.
    """

    def __init__(
        self, engine: Engine, source: Source, settings: ReadingSettings, policy: CommitPolicy, shows: bool
    ) -> None:
        self.engine, self.source, self.settings, self.policy, self.shows = engine, source, settings, policy, shows

    def answer(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """`score`, `score_windows` (nobody asks whether they are greedy) or `generate`; answers in order."""
        if kind == "generate":
            with self._bar("texts", requests) as answered:
                return self._generate(requests, answered)
        if self.settings.bounds:
            return self._bounds(requests, asks_whether_greedy=kind == "score")
        with self._bar("log-likelihoods", requests) as answered:
            return score_exactly(self.engine, requests, self.settings.batch_size, answered)

    def _bar(self, what: str, requests: Sequence[Any]) -> AbstractContextManager[Answered]:
        return progress_bar(what, len(requests), self.shows)

    def _bounds(self, requests: Sequence[Scoring], asks_whether_greedy: bool) -> list[Score]:
        engine, settings = self.engine, self.settings
        bound = BoundSettings(settings.block_length, settings.samples, settings.seed)
        with self._bar("bounds of log-likelihoods", requests) as answered:
            found = score_by_bound(engine, requests, settings.batch_size, bound, answered)
        same = [False] * len(requests)
        if asks_whether_greedy:
            with self._bar("greedy continuations", requests) as answered:
                same = greedy_continuations(
                    engine, requests, settings.batch_size, settings.block_length, self.policy, answered
                )
        return [Score(total, greedy, error) for (total, error), greedy in zip(found, same, strict=True)]

    def _generate(self, requests: Sequence[Generation], answered: Answered) -> list[Generated]:
        settings = self.settings
        return generate(
            self.engine,
            requests,
            settings.batch_size,
            settings.mode,
            self._options,
            self.policy,
            self._text,
            answered,
        )

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.source.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _options(self, sampling: Sampling, seeds: tuple[int, ...]) -> DecodeOptions:
        return DecodeOptions(
            max_new_tokens=self.settings.most_new_tokens(sampling),
            block_length=self.settings.block_length,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seeds=seeds,
            adapter=self.settings.adapter,
            **stopping(self.source.tokenizer, sampling.stop_strings, self.source.stop_tokens),
        )
