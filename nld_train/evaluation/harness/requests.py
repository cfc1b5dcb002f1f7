"""What the harness asks, in ids, and what it gets back: plain values that travel between processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Scoring:
    """How likely is a continuation after a context?

    Attributes:
        context: at least one id.
        continuation: any number of ids.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a causal model reads to predict the continuation: all ids but the last."""
        return (self.context + self.continuation)[:-1]


@dataclass(frozen=True)
class Score:
    """An answer to `Scoring`.

    Attributes:
        loglikelihood: in nats; of the diffusion mode a lower bound of it, in expectation.
        greedy: would decoding greedily in this mode give this continuation.
        standard_error: of the estimate in nats; 0 where nothing was sampled.
    """

    loglikelihood: float
    greedy: bool
    standard_error: float = 0.0


@dataclass(frozen=True)
class Sampling:
    """Settings that texts share which are decoded together.

    Attributes:
        max_new_tokens: most new tokens of a text.
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
    """Continue a prompt.

    Attributes:
        prompt: at least one id.
        sampling: how.
        seed: of this text's random stream.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Generated:
    """An answer to `Generation`.

    Attributes:
        text: new text up to the first stop string, without it.
        new_tokens: ids it took, those of the stop included.
        forwards: decode forwards this text would take alone, the prefill aside.
    """

    text: str
    new_tokens: int
    forwards: int


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive groups of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
