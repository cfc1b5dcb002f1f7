"""Pictures beside the messages of a row: in columns `images` or `image`, as `datasets` and LLaVA's files have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nld_train.data.chat.messages import Message
from nld_train.data.chat.parts import Reference, with_pictures
from nld_train.errors import UserError

ROW_PICTURES = ("images", "image")
# Where texts say that a picture of the row stands.
_PLACE = "<image>"


def place_row_pictures(turns: list[Message], row: dict[str, Any], where: object) -> list[Message]:
    """Messages whose pictures are all known.

    The pictures of a row go to the parts of messages that are pictures and do not say which; where there are none, to
    each `<image>` in their texts; where there is none of these either, before the first question.

    Args:
        turns: of the row.
        row: may have pictures of its own.
        where: file and row, for messages of errors.

    Raises:
        UserError: the row has more or fewer pictures than placeholders, or one is in an answer.
    """
    own = _own_pictures(row, where)
    if own and not _placeholders(turns):
        turns = [_at_markers(turn) for turn in turns]
    if own and not _placeholders(turns):
        turns = before_question(turns, len(own), where)
    if (placeholders := _placeholders(turns)) != len(own):
        raise UserError(
            f"{where}: the row has {len(own)} pictures under {' or '.join(map(repr, ROW_PICTURES))}, and its messages "
            f"have placeholders for {placeholders}"
        )
    left = iter(own)
    placed = [_filled(turn, left) for turn in turns]
    for number, message in enumerate(placed, 1):
        if message.references and message.role == "assistant":
            raise UserError(f"{where}: message {number} (assistant): holds a picture; the model writes text only")
    return placed


def _own_pictures(row: dict[str, Any], where: object) -> list[Reference]:
    found = [row[name] for name in ROW_PICTURES if row.get(name) is not None]
    if len(found) > 1:
        raise UserError(f"{where}: has both 'images' and 'image': one of them must hold its pictures")
    if not found:
        return []
    return list(found[0]) if isinstance(found[0], list | tuple) else [found[0]]


def _placeholders(turns: list[Message]) -> int:
    """Pictures of messages that do not say which."""
    return sum(reference is None for turn in turns for reference in turn.references)


def _at_markers(turn: Message) -> Message:
    """A message whose text has a picture wherever it says `<image>`."""
    text = turn.content.get("content")
    if turn.references or not isinstance(text, str) or _PLACE not in text:
        return turn
    parts: list[str | tuple[Reference]] = []
    for number, piece in enumerate(text.split(_PLACE)):
        parts += [(None,), piece] if number else [piece]
    return _with_content(turn, parts)


def before_question(turns: list[Message], count: int, where: object) -> list[Message]:
    """Messages with placeholders for so many pictures of the row before the first text of the user.

    Raises:
        UserError: there is no such text.
    """
    if not count:
        return turns
    number = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if number is None:
        raise UserError(f"{where}: the row has {count} pictures, and no message of a user to which they would belong")
    text = turns[number].content.get("content") or ""
    if not isinstance(text, str):
        raise UserError(f"{where}: the row has {count} pictures, and its messages have pictures of their own")
    parts: list[str | tuple[Reference]] = [*[(None,)] * count, text]
    return [*turns[:number], _with_content(turns[number], parts), *turns[number + 1 :]]


def _with_content(turn: Message, parts: list[str | tuple[Reference]]) -> Message:
    content, references = with_pictures(parts)
    return replace(turn, content={**turn.content, "content": content}, references=references)


def _filled(turn: Message, left: Iterator[Reference]) -> Message:
    if not turn.references:
        return turn
    found = tuple(next(left) if reference is None else reference for reference in turn.references)
    return replace(turn, references=found)
