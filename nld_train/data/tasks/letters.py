"""Questions about random words: copy, upper case, reverse."""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import Kind, Turn
from nld_train.data.tasks.words import random_words

# By difficulty: how many words there are.
COUNTS = {1: (2,), 2: (2, 3), 3: (3,)}


def random_text(random: Random, difficulty: int) -> str:
    """Two or three random words."""
    return " ".join(random_words(random, COUNTS[difficulty]))


def reversed_words(text: str) -> str:
    """The words of a text from the last to the first."""
    return " ".join(reversed(text.split()))


class Copy(Kind):
    """`copy wolf bear`: `wolf bear`."""

    name = "copy"
    weight = 0.75

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        text = random_text(random, difficulty)
        return [Turn(f"copy {text}", text)]


class Upper(Kind):
    """`upper wolf bear`: `WOLF BEAR`."""

    name = "upper"
    weight = 0.5

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        text = random_text(random, difficulty)
        return [Turn(f"upper {text}", text.upper())]


class Reverse(Kind):
    """`reverse wolf bear pear`: `pear bear wolf`."""

    name = "reverse"
    weight = 0.75

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        text = random_text(random, difficulty)
        return [Turn(f"reverse {text}", reversed_words(text))]
