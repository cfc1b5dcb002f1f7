"""Questions about random words: copy, upper case, reverse."""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import Kind, Turn
from nld_train.data.tasks.words import random_words

# By difficulty: how many words there are.
COUNTS = {1: (1, 2), 2: (2, 3), 3: (3,)}
REVERSED_COUNTS = {1: (2,), 2: (2, 3), 3: (3,)}


def random_text(random: Random, difficulty: int) -> str:
    """One to three random words."""
    return " ".join(random_words(random, COUNTS[difficulty]))


class Copy(Kind):
    """`copy dog cat`: `dog cat`."""

    name = "copy"
    weight = 0.75

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        text = random_text(random, difficulty)
        return [Turn(f"copy {text}", text)]


class Upper(Kind):
    """`upper dog cat`: `DOG CAT`."""

    name = "upper"
    weight = 0.75

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        text = random_text(random, difficulty)
        return [Turn(f"upper {text}", text.upper())]


class Reverse(Kind):
    """`reverse dog cat apple`: `apple cat dog`."""

    name = "reverse"
    weight = 1.0

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        words = random_words(random, REVERSED_COUNTS[difficulty])
        return [Turn(f"reverse {' '.join(words)}", " ".join(reversed(words)))]
