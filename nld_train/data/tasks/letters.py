"""Questions about random words: copy, upper case, reverse."""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import Kind, Turn, random_word

# By difficulty: lengths of words, and how many there are.
WORD_LENGTHS = range(4, 8)
WORDS = {1: (1, 2), 2: (2,), 3: (2, 3)}
REVERSED_LENGTHS = {1: range(5, 8), 2: range(7, 11), 3: range(10, 14)}


def random_words(random: Random, difficulty: int) -> str:
    """One to three random words."""
    count = random.choice(WORDS[difficulty])
    return " ".join(random_word(random, WORD_LENGTHS) for _ in range(count))


class Copy(Kind):
    """`copy dog cat`: `dog cat`."""

    name = "copy"
    weight = 0.75

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        text = random_words(random, difficulty)
        return [Turn(f"copy {text}", text)]


class Upper(Kind):
    """`upper dog cat`: `DOG CAT`."""

    name = "upper"
    weight = 0.75

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        text = random_words(random, difficulty)
        return [Turn(f"upper {text}", text.upper())]


class Reverse(Kind):
    """`reverse animal`: `lamina`."""

    name = "reverse"
    weight = 1.5

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        word = random_word(random, REVERSED_LENGTHS[difficulty])
        return [Turn(f"reverse {word}", word[::-1])]
