"""Answers requests on one rank with its replica of the model, and shows the progress on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.algorithms.stop_strings import stopping
from nld_train.decoding.command_line.request import value_errors_as_user_errors
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.load import Source
from nld_train.decoding.policies.commit import CommitPolicy
from nld_train.evaluation.harness.bound import BoundSettings, score_by_bound
from nld_train.evaluation.harness.generation import generate, greedy_continuations
from nld_train.evaluation.harness.likelihood import score_exactly
from nld_train.evaluation.harness.requests import (
    Generated,
    Generation,
    GenerationSettings,
    Score,
    Scoring,
)
from nld_train.evaluation.harness.settings import EvaluationSettings
from nld_train.progress import Advance, progress_bar


class Worker:
    """Answers requests on one rank.

    Args:
        engine: the model.
        source: its checkpoint.
        settings: of the evaluation.
        policy: commit policy of diffusion decoding.
        shows_progress: whether this rank shows progress bars.
    """

    def __init__(
        self, engine: Engine, source: Source, settings: EvaluationSettings, policy: CommitPolicy, shows_progress: bool
    ) -> None:
        self.engine, self.source, self.settings, self.policy = engine, source, settings, policy
        self.shows_progress = shows_progress
        self.block_length = source.block_length if settings.block_length is None else settings.block_length

    def answer(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """Answers requests in order.

        Args:
            kind: `score`; `score_windows`, the same without `Score.greedy`; or `generate`.
            requests: `Scoring` or, for `generate`, `Generation`.
        """
        if kind == "generate":
            with self._bar("texts", requests) as completed:
                return self._generate(requests, completed)
        if self.settings.bounds:
            return self._bounds(requests, with_greedy=kind == "score")
        with self._bar("log-likelihoods", requests) as completed:
            return score_exactly(self.engine, requests, self.settings.batch_size, completed)

    def _bar(self, what: str, requests: Sequence[Any]) -> AbstractContextManager[Advance]:
        return progress_bar(what, len(requests), shown=self.shows_progress)

    def _bounds(self, requests: Sequence[Scoring], with_greedy: bool) -> list[Score]:
        engine, settings = self.engine, self.settings
        bound = BoundSettings(self.block_length, settings.noise_samples, settings.seed)
        with self._bar("bounds of log-likelihoods", requests) as completed:
            found = score_by_bound(engine, requests, settings.batch_size, bound, completed)
        same = [False] * len(requests)
        if with_greedy:
            with self._bar("greedy continuations", requests) as completed:
                options = {"block_length": self.block_length, **self._settings_of_decoding}
                with value_errors_as_user_errors():
                    same = greedy_continuations(engine, requests, settings.batch_size, options, self.policy, completed)
        return [Score(total, greedy, error) for (total, error), greedy in zip(found, same, strict=True)]

    def _generate(self, requests: Sequence[Generation], completed: Advance) -> list[Generated]:
        settings = self.settings
        with value_errors_as_user_errors():
            return generate(
                self.engine,
                requests,
                settings.batch_size,
                settings.mode,
                self._options,
                self.policy,
                self._text,
                completed,
            )

    @property
    def _settings_of_decoding(self) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in ("block_start", "cuda_graphs")}

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.source.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _options(self, settings: GenerationSettings, seeds: tuple[int, ...]) -> DecodeOptions:
        return DecodeOptions(
            max_new_tokens=settings.max_new_tokens,
            block_length=self.block_length,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seeds=seeds,
            adapter=self.settings.adapter,
            **self._settings_of_decoding,
            **stopping(self.source.tokenizer, settings.stop_strings, self.source.stop_tokens),
        )
