"""Text for the stages before conversations: random words, and the same words again in the forms that answers have.

A tiny model learns to find something again in its context in a minute from text in which most can be found; from
answers alone, most of whose tokens are prompt, it hardly learns to look things up in a table (docs/tasks.md).
"""

from __future__ import annotations

from random import Random

from nld_train.data.tasks.kind import DIFFICULTIES
from nld_train.data.tasks.letters import random_text, reversed_words
from nld_train.data.tasks.lookup import random_table, rows_text
from nld_train.data.tasks.words import random_words

# Bytes of a document, at least.
_LENGTH = 96


def random_document(random: Random) -> str:
    """Lines of one form or several."""
    lines: list[str] = []
    while sum(map(len, lines)) + len(lines) < _LENGTH:
        lines.append(random.choices(_FORMS, _WEIGHTS)[0](random))
    return "\n".join(lines)


def _repeated_words(random: Random) -> str:
    return "; ".join([random_text(random, random.choice(DIFFICULTIES))] * random.choice((2, 3)))


def _upper_words(random: Random) -> str:
    text = random_text(random, random.choice(DIFFICULTIES))
    return f"{text}; {text.upper()}"


def _words_reversed(random: Random) -> str:
    text = " ".join(random_words(random, (2, 3)))
    return f"{text}; {reversed_words(text)}"


def _repeated_rows(random: Random) -> str:
    table = random_table(random, random.choice(DIFFICULTIES))
    again = random.sample(list(table.items()), k=2)
    return f"{rows_text(table)}; {rows_text(dict(again))}"


_FORMS = (_repeated_words, _upper_words, _words_reversed, _repeated_rows)
_WEIGHTS = (3, 1, 1, 2)
