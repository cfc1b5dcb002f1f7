"""What a kind of question is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from random import Random
from typing import ClassVar, NamedTuple, Protocol, TypeVar

# From the easiest to the hardest: more letters, more rows, larger numbers.
DIFFICULTIES = (1, 2, 3)


class Turn(NamedTuple):
    """A question of the user, and the only right answer to it."""

    question: str
    answer: str


class Kind(ABC):
    """A kind of question. A new kind is a subclass, and an entry in `registry.py`."""

    # Its name in files, tables and task names: lower case, no spaces.
    name: ClassVar[str]
    # How often it is drawn for training, relative to the other kinds: more for what takes longer to learn.
    weight: ClassVar[float] = 1.0

    @abstractmethod
    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """A random conversation, whose last answer is scored.

        Args:
            random: the only source of randomness.
            difficulty: one of `DIFFICULTIES`.
        """


class Weighted(Protocol):
    """What is drawn for training as often as its weight says."""

    weight: ClassVar[float]


Drawn = TypeVar("Drawn", bound=Weighted)


def drawn_kinds(kinds: Sequence[Drawn], random: Random) -> Iterator[tuple[Drawn, int]]:
    """Kinds and difficulties without end, each kind as often as its weight says."""
    weights = [kind.weight for kind in kinds]
    while True:
        (kind,) = random.choices(kinds, weights)
        yield kind, random.choice(DIFFICULTIES)
