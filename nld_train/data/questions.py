"""Conversations of a chat set as questions: the tokens up to an answer, and the answer, as they are on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from nld_train.config.schema import Config, SourceConfig
from nld_train.data.chat_set import ChatSet
from nld_train.data.manifest import is_chat_set, read_manifest
from nld_train.data.sample_sets import validation_sources
from nld_train.errors import UserError
from nld_train.masking.answer_blocks import answer_bounds
from nld_train.model.vision.picture_prompt import PicturePrompt

if TYPE_CHECKING:
    from nld_train.data.pictures.store import StoredPicture
    from nld_train.model.vision.pictures import Pictures


@dataclass(frozen=True)
class Question:
    """A conversation up to its last answer.

    Attributes:
        prompt: ids of at least one token, the generation prompt included; with the pictures whose tokens are among
            them, where there are some.
        answer: ids of the answer, those that end the turn included.
    """

    prompt: Sequence[int]
    answer: list[int]


def questions(prefix: str, count: int, longest: int) -> list[Question]:
    """Questions from conversations that are spread over a set, in file order: always the same ones.

    The set is cut into as many parts as there are questions, and each part has one, or more in place of those that
    others lack. A conversation without an answer, with nothing before it, or with a longer prompt is no question.

    Args:
        prefix: of a chat set.
        count: most of them; there are fewer where the set has fewer.
        longest: most tokens of a prompt.

    Raises:
        UserError: the set cannot be read.
    """
    chat = ChatSet(prefix)
    count = min(count, chat.documents)
    borders = [number * chat.documents // count for number in range(count + 1)]
    parts = [_within(chat, range(first, end), longest) for first, end in pairwise(borders)]
    found: list[list[Question]] = [[] for _ in parts]
    total, active = 0, list(zip(parts, found, strict=True))
    while total < count and active:
        for pair in active[:]:
            part, own = pair
            if total < count and (question := next(part, None)) is not None:
                own.append(question)
                total += 1
            else:
                active.remove(pair)
    return [question for own in found for question in own]


def _within(chat: ChatSet, documents: range, longest: int) -> Iterator[Question]:
    """The questions among some consecutive conversations."""
    for document in documents:
        if (question := _last(chat, document, longest)) is not None:
            yield question


def _last(chat: ChatSet, document: int, longest: int) -> Question | None:
    """The last answer of a conversation, and what is before it."""
    tokens, answers = chat.read(*chat.span(document))
    starts, ends = answer_bounds(answers, np.zeros(1, dtype=np.int64))
    if not len(starts) or not 0 < starts[-1] <= longest:
        return None
    prompt: Sequence[int] = tokens[: starts[-1]].tolist()
    if stored := chat.pictures(chat.span(document)[0], len(prompt)):
        prompt = PicturePrompt(prompt, _inputs(chat, stored))
    return Question(prompt, tokens[starts[-1] : ends[-1]].tolist())


def _inputs(chat: ChatSet, stored: Sequence[StoredPicture]) -> Pictures:
    """Pictures of a set as the tower takes them."""
    import torch

    from nld_train.model.vision.pictures import Pictures

    return Pictures.of([torch.from_numpy(chat.input_of(each)) for each in stored])


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


def stage_questions(config: Config, stage: str) -> tuple[list[Question], tuple[int, ...]] | None:
    """What the decoding hook asks in a stage, and the tokens that end answers; None without held-out conversations.

    Raises:
        UserError: a set cannot be read, or none holds a question for which the context has room.
    """
    sources = [source for source in validation_sources(config, stage) if is_chat_set(source.prefix)]
    if not sources:
        return None
    settings, context = config.evaluation, config.model.max_position_embeddings
    found = questions_of(sources, settings.prompts, context - settings.max_new_tokens)
    if not found:
        raise UserError(
            f"evaluation.prompts: no conversation of {', '.join(source.prefix for source in sources)} has an answer "
            f"after a prompt that leaves room for evaluation.max_new_tokens={settings.max_new_tokens} in the context "
            f"of {context}"
        )
    return found, tuple(dict.fromkeys([config.model.eos_token_id, *_ends_of_turns(sources)]))


def _ends_of_turns(sources: Sequence[SourceConfig]) -> tuple[int, ...]:
    """The ids with which the answers of chat sets end, for the sets whose answers all end alike."""
    manifests = [read_manifest(source.prefix) for source in sources]
    chats = [manifest.chat for manifest in manifests if manifest is not None and manifest.chat is not None]
    return tuple(dict.fromkeys(chat.end_of_turn for chat in chats if chat.end_of_turn is not None))
