"""Conversations of two questions, the second of which is about the first or its answer."""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import Kind, Turn
from nld_train.data.tasks.letters import random_text, reversed_words
from nld_train.data.tasks.lookup import find, first_question, random_table


class FollowUp(Kind):
    """`copy wolf bear`, then `upper it`; `copy wolf bear`, then `reverse it`; other rows of a table."""

    name = "follow_up"
    weight = 1.0

    def draw(self, random: Random, difficulty: int) -> list[Turn]:
        """See `Kind.draw`."""
        form = random.choice((_upper_it, _reverse_it, _other_rows))
        return form(random, difficulty)


def _upper_it(random: Random, difficulty: int) -> list[Turn]:
    text = random_text(random, difficulty)
    return [Turn(f"copy {text}", text), Turn("upper it", text.upper())]


def _reverse_it(random: Random, difficulty: int) -> list[Turn]:
    text = random_text(random, difficulty)
    return [Turn(f"copy {text}", text), Turn("reverse it", reversed_words(text))]


def _other_rows(random: Random, difficulty: int) -> list[Turn]:
    table = random_table(random, difficulty)
    first, second = (random.sample(list(table), k=2) for _ in range(2))
    return [first_question(table, first), find(table, second)]
