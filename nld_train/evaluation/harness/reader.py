"""One rank's answers: requests in ids to scores and texts, read from its own copy of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nld_train.decoding.engine import Engine
from nld_train.decoding.load import Source
from nld_train.decoding.options import DecodeOptions
from nld_train.decoding.policies import CommitPolicy
from nld_train.decoding.stop_strings import stopping
from nld_train.evaluation.harness.bound import BoundSettings, score_by_bound
from nld_train.evaluation.harness.generation import generate, greedy_continuations
from nld_train.evaluation.harness.likelihood import score_exactly
from nld_train.evaluation.harness.requests import Generated, Generation, Sampling, Score
from nld_train.evaluation.harness.settings import ReadingSettings


class Reader:
    """Answers requests in ids on one rank.

    Args:
        engine: the model.
        source: its checkpoint.
        settings: how to read it.
        policy: what a denoising pass of diffusion commits.
    """

    def __init__(self, engine: Engine, source: Source, settings: ReadingSettings, policy: CommitPolicy) -> None:
        self.engine, self.source, self.settings, self.policy = engine, source, settings, policy

    def answer(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """`score`, `score_windows` (nobody asks whether they are greedy) or `generate`; answers in order."""
        settings = self.settings
        if kind == "generate":
            return self._generate(requests)
        if not settings.bounds:
            return score_exactly(self.engine, requests, settings.batch_size)
        bound = BoundSettings(settings.block_length, settings.samples, settings.seed)
        found = score_by_bound(self.engine, requests, settings.batch_size, bound)
        same = [False] * len(requests)
        if kind == "score":
            same = greedy_continuations(self.engine, requests, settings.batch_size, settings.block_length, self.policy)
        return [Score(total, greedy, error) for (total, error), greedy in zip(found, same, strict=True)]

    def _generate(self, requests: Sequence[Generation]) -> list[Generated]:
        settings = self.settings
        return generate(
            self.engine,
            requests,
            settings.batch_size,
            settings.mode,
            self._options,
            self.policy,
            self._text,
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
