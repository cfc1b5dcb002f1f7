"""Conversations of two questions, the second of which is about the first or its answer."""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import Kind, Turn
from nld_train.data.tasks.letters import REVERSED_COUNTS, random_text
from nld_train.data.tasks.lookup import first_question, random_table
from nld_train.data.tasks.words import random_words


class FollowUp(Kind):
    """`copy dog cat`, then `upper it`; `copy dog cat`, then `reverse it`; another row of a table."""

    name = "follow_up"
    weight = 1.5

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        form = random.choice((_upper_it, _reverse_it, _another_row))
        return form(random, difficulty)


def _upper_it(random: Random, difficulty: int) -> list[Turn]:
    text = random_text(random, difficulty)
    return [Turn(f"copy {text}", text), Turn("upper it", text.upper())]


def _reverse_it(random: Random, difficulty: int) -> list[Turn]:
    words = random_words(random, REVERSED_COUNTS[difficulty])
    return [Turn(f"copy {' '.join(words)}", " ".join(words)), Turn("reverse it", " ".join(reversed(words)))]


def _another_row(random: Random, difficulty: int) -> list[Turn]:
    table = random_table(random, difficulty)
    first, second = random.sample(list(table), k=2)
    return [first_question(table, first), Turn(f"find {second}", f"{second}{table[second]}")]
