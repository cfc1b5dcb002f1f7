"""Questions about numbers: add, count, sort."""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import Kind, Turn

# By difficulty: summands (of two digits, as their sum has), letters among which some are counted, digits to sort.
SUMMANDS = {1: (range(10, 80), range(10, 30)), 2: (range(10, 50), range(10, 50)), 3: (range(10, 90), range(10, 90))}
COUNTED = {1: range(3, 6), 2: range(5, 8), 3: range(7, 9)}
SORTED = {1: range(3, 6), 2: range(5, 7), 3: range(6, 9)}
# Letters that occur in no other word of the question.
_LETTERS, _DIGITS = "xyz", "0123456789"


class Add(Kind):
    """`add 47 + 35`: `12 + 70 = 82`, sums of units and of tens before the sum of all; the former with two digits."""

    name = "add"
    weight = 3.0

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        first = second = 100
        while first + second >= 100:
            first, second = (random.choice(summands) for summands in SUMMANDS[difficulty])
        units, tens = first % 10 + second % 10, first // 10 + second // 10
        return [Turn(f"add {first} + {second}", f"{units:02} + {tens}0 = {first + second}")]


class Count(Kind):
    """`count y in xyzy`: `-y-y: 2 y`, the letters that count in their own positions before their number."""

    name = "count"
    weight = 3.0

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        letter = random.choice(_LETTERS)
        text = "".join(random.choices(_LETTERS, k=random.choice(COUNTED[difficulty])))
        marks = "".join(each if each == letter else "-" for each in text)
        return [Turn(f"count {letter} in {text}", f"{marks}: {text.count(letter)} {letter}")]


class Sort(Kind):
    """`sort 5 2 9 1`: `1 2 5 9`."""

    name = "sort"
    weight = 2.0

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`; no digit twice."""
        digits = random.sample(_DIGITS, k=random.choice(SORTED[difficulty]))
        return [Turn(f"sort {' '.join(digits)}", " ".join(sorted(digits)))]
