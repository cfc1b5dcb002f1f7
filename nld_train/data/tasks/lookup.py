"""Questions about a table that is in the question."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from nld_train.data.tasks.kind import Kind, Turn
from nld_train.data.tasks.words import random_words

# By difficulty: rows of the table.
ROWS = {1: 2, 2: 3, 3: 4}
# A name is one byte that occurs nowhere else, before its value without a separator: to find a value is then to find the
# name again in the context, the first thing that attention learns.
_NAMES = "#@%&$*!?"


def random_table(random: Random, difficulty: int) -> dict[str, str]:
    """Random words by name, in random order."""
    rows = ROWS[difficulty]
    return dict(zip(random.sample(_NAMES, k=rows), random_words(random, (rows,)), strict=True))


def rows_text(table: dict[str, str]) -> str:
    """The rows of a table as they stand in a question."""
    return " ".join(f"{name}{value}" for name, value in table.items())


def find(table: dict[str, str], names: Sequence[str]) -> Turn:
    """The question for some rows of a table that the conversation has already."""
    return Turn(f"find {' '.join(names)}", rows_text({name: table[name] for name in names}))


def first_question(table: dict[str, str], names: Sequence[str]) -> Turn:
    """The question for some rows that has the table in it."""
    question, answer = find(table, names)
    return Turn(f"lookup {rows_text(table)} {question}", answer)


class Lookup(Kind):
    """`lookup #pear @lake %wolf find @ #`: `@lake #pear`."""

    name = "lookup"
    weight = 1.0

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        table = random_table(random, difficulty)
        return [first_question(table, random.sample(list(table), k=2))]
