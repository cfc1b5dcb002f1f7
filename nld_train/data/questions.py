"""Conversations of a chat set as questions: the tokens up to an answer, and the answer, as they are on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nld_train.config.schema import SourceConfig
from nld_train.data.chat_set import ChatSet
from nld_train.data.manifest import read_manifest
from nld_train.data.token_index import document_spans


@dataclass(frozen=True)
class Question:
    """A conversation up to its last answer.

    Attributes:
        prompt: ids of at least one token, the generation prompt included.
        answer: ids of the answer, those that end the turn included.
    """

    prompt: list[int]
    answer: list[int]


def questions(prefix: str, count: int, longest: int) -> Iterator[Question]:
    """Questions from conversations that are spread evenly over a set, in file order: always the same ones.

    A conversation without an answer, with nothing before it, or with a longer prompt is left out for the next one.

    Args:
        prefix: of a chat set.
        count: most of them.
        longest: most tokens of a prompt.

    Raises:
        UserError: the set cannot be read.
    """
    chat = ChatSet(prefix)
    count = min(count, chat.documents)
    borders = [number * chat.documents // count for number in range(count + 1)]
    for first, end in pairwise(borders):
        for starts, lengths in document_spans(prefix, documents=range(first, end)):
            spans = zip(starts.tolist(), lengths.tolist(), strict=True)
            found = next((question for span in spans if (question := _last(chat, *span, longest))), None)
            if found is not None:
                yield found
                break


def _last(chat: ChatSet, start: int, length: int, longest: int) -> Question | None:
    """The last answer of a conversation, and what is before it."""
    answers = chat.answers.read(start, length)
    if not answers.any():
        return None
    end = int(np.flatnonzero(answers)[-1]) + 1
    begin = end - int(np.argmin(answers[:end][::-1])) if not answers[:end].all() else 0
    if not 0 < begin <= longest:
        return None
    tokens = chat.read_tokens(start, end).tolist()
    return Question(tokens[:begin], tokens[begin:])


def questions_of(sources: Sequence[SourceConfig], count: int, longest: int) -> list[Question]:
    """Questions from several chat sets, from each as many as its weight says.

    Args:
        sources: chat sets and their weights.
        count: most of them, of all sets together.
        longest: most tokens of a prompt.

    Raises:
        UserError: a set cannot be read.
    """
    total = sum(source.weight for source in sources)
    found: list[Question] = []
    passed = 0.0
    for source in sources:
        # Rounding the sums, so that the numbers add up to all.
        before, passed = passed, passed + source.weight
        own = round(count * passed / total) - round(count * before / total)
        if own > 0:
            found += questions(source.prefix, own, longest)
    return found


def ends_of_turns(sources: Sequence[SourceConfig]) -> tuple[int, ...]:
    """The ids with which the answers of chat sets end, for the sets whose answers all end alike."""
    manifests = [read_manifest(source.prefix) for source in sources]
    chats = [manifest.chat for manifest in manifests if manifest is not None and manifest.chat is not None]
    return tuple(dict.fromkeys(chat.end_of_turn for chat in chats if chat.end_of_turn is not None))
