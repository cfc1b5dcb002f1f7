"""Prompts by category from a JSONL file in SPEED-Bench's format, and conversations of several turns.

SPEED-Bench (arXiv 2604.09557) has one object per line with `question_id`, `category`, `sub_category`, `turns` (a list
of the user's texts), `source`, `src_id`, `difficulty` and `multiturn`; prepared by its tools it has
`messages` (`role` and `content`) in place of `turns`. Only the category and the texts are read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.data.text_ids import plain_ids, text_ids
from nld_train.decoding.command_line.prompts import checked_characters, lines_of
from nld_train.errors import UserError
from nld_train.outside_json import parse_object

# The published files have this in place of texts that may not be redistributed; SPEED-Bench's tools fill them in.
PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"


@dataclass(frozen=True)
class Question:
    """A line of the file.

    Attributes:
        where: file and line, for messages.
        category: of the report.
        turns: texts of the user, in order.
    """

    where: str
    category: str
    turns: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """All lines of a file.

    Raises:
        UserError: a line is not such an object, or has no text.
    """
    _, lines = lines_of(path)
    return [_question(line.where, parse_object(line.text, line.where)) for line in lines]


def has_categories(path: Path) -> bool:
    """Whether the lines of a file of prompts have categories, by its first line.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    kind, lines = lines_of(path)
    return kind == "jsonl" and '"category"' in lines[0].text


def _question(where: str, record: dict[str, Any]) -> Question:
    if not isinstance(record.get("category"), str) or not record["category"]:
        raise UserError(f'{where}: is not an object with a "category"')
    turns = _turns(record)
    if not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise UserError(f'{where}: has no text under "turns" (a list of texts), "messages" or "prompt"')
    if any(turn.startswith(PLACEHOLDER) for turn in turns):
        raise UserError(f"{where}: holds a placeholder in place of its text; prepare the file with SPEED-Bench's tools")
    return Question(where, record["category"], tuple(checked_characters(turn, where) for turn in turns))


def _turns(record: dict[str, Any]) -> tuple[Any, ...]:
    if isinstance(record.get("turns"), list):
        return tuple(record["turns"])
    if isinstance(record.get("messages"), list):
        users = (message for message in record["messages"] if isinstance(message, dict))
        return tuple(message.get("content") for message in users if message.get("role") == "user")
    return (record["prompt"],) if "prompt" in record else ()


class Conversation:
    """A question's turns with the model's answers to them.

    Args:
        question: the turns.
        tokenizer: of `transformers`; its chat template is used where it has one, else the texts are joined by line
            breaks.
    """

    def __init__(self, question: Question, tokenizer: Any) -> None:
        self.question = question
        self._tokenizer = tokenizer
        self._messages: list[dict[str, str]] = []

    def prompt(self, turn: int) -> list[int]:
        """Adds the user's turn; returns the ids of the conversation up to it, to be continued by an answer."""
        self._messages.append({"role": "user", "content": self.question.turns[turn]})
        if getattr(self._tokenizer, "chat_template", None):
            text = self._tokenizer.apply_chat_template(self._messages, add_generation_prompt=True, tokenize=False)
            return plain_ids(self._tokenizer, text)
        return text_ids(self._tokenizer, "\n".join(message["content"] for message in self._messages))

    def add_answer(self, token_ids: Sequence[int]) -> None:
        """Adds the answer to the last turn."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        self._messages.append({"role": "assistant", "content": text})
