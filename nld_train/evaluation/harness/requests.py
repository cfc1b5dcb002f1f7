"""Requests of the harness as token ids, and their results: plain values that can be sent between processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Scoring:
    """A request for the log-likelihood of a continuation after a context.

    Attributes:
        context: at least one id.
        continuation: at least one id: an empty one would have the likelihood 1.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.context
        assert self.continuation

    @property
    def inputs(self) -> tuple[int, ...]:
        """The ids from which a causal model predicts the continuation: all but the last."""
        return (self.context + self.continuation)[:-1]


@dataclass(frozen=True)
class Score:
    """The result of a `Scoring`.

    Attributes:
        loglikelihood: in nats; in diffusion mode a lower bound of it, in expectation.
        greedy: whether greedy decoding in this mode gives this continuation.
        standard_error: of the estimate in nats; 0 where nothing was sampled.
    """

    loglikelihood: float
    greedy: bool
    standard_error: float = 0.0


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of generated texts; texts with the same settings are decoded together.

    Attributes:
        max_new_tokens: maximum number of new tokens of a text.
        stop_strings: texts that end it.
        temperature: 0 is greedy.
        top_k: 0 is all.
        top_p: 1 is all.
    """

    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Generation:
    """A request for the continuation of a prompt.

    Attributes:
        prompt: at least one id, with its pictures where it has some.
        settings: of the text.
        seed: of this text's random stream.
    """

    prompt: Sequence[int]
    settings: GenerationSettings
    seed: int


@dataclass(frozen=True)
class Generated:
    """The result of a `Generation`.

    Attributes:
        text: new text up to the first stop string, without it.
        new_tokens: number of new ids, those of the stop included.
        forwards: decode forwards that this text would need alone, without the prefill.
    """

    text: str
    new_tokens: int
    forwards: int


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive groups of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
