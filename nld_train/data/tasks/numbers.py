"""Questions about numbers: add, count, sort."""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import Kind, Turn

# By difficulty: summands, letters among which some are counted, digits to sort.
SUMMANDS = {1: (range(10, 100), range(1, 10)), 2: (range(10, 50), range(10, 50)), 3: (range(10, 100), range(10, 100))}
COUNTED = {1: range(3, 6), 2: range(5, 8), 3: range(7, 9)}
SORTED = {1: range(3, 6), 2: range(5, 7), 3: range(6, 9)}
_LETTERS, _DIGITS = "abc", "0123456789"


class Add(Kind):
    """`add 47 + 35`: `47 + 35 = 82`."""

    name = "add"
    weight = 2.0

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        first, second = (random.choice(summands) for summands in SUMMANDS[difficulty])
        return [Turn(f"add {first} + {second}", f"{first} + {second} = {first + second}")]


class Count(Kind):
    """`count b in abcb`: `bb: 2 times b`."""

    name = "count"
    weight = 1.5

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        letter = random.choice(_LETTERS)
        text = "".join(random.choices(_LETTERS, k=random.choice(COUNTED[difficulty])))
        times = text.count(letter)
        return [Turn(f"count {letter} in {text}", f"{letter * times}: {times} times {letter}")]


class Sort(Kind):
    """`sort 5 2 9 1`: `1 2 5 9`."""

    name = "sort"
    weight = 0.75

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`; no digit twice."""
        digits = random.sample(_DIGITS, k=random.choice(SORTED[difficulty]))
        return [Turn(f"sort {' '.join(digits)}", " ".join(sorted(digits)))]
