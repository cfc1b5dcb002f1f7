"""A row of chat data as a conversation: the usual formats, in the form that chat templates read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from nld_train.data.chat.messages import Message, message_of
from nld_train.data.chat.parts import require_text
from nld_train.data.chat.row_pictures import ROW_PICTURES, before_question, place_row_pictures
from nld_train.data.pictures.references import Picture
from nld_train.data.records import Within, keys_of, kind_of
from nld_train.errors import UserError
from nld_train.outside_json import parse_json

ChatFormat = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "finevision"]
CHAT_FORMATS = get_args(ChatFormat)


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: in order.
        tools: descriptions of the tools that the assistant may call, as JSON schemas, or None.
        template_arguments: of the template, of this row alone.
        where: file and row, for messages.
    """

    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None
    template_arguments: dict[str, Any]
    where: object

    @cached_property
    def text(self) -> str:
        """What is said in it, without roles."""
        return "\n".join(text for message in self.messages for text in message.texts if text)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures of all messages, in order."""
        return tuple(picture for message in self.messages for picture in message.pictures)

    @cached_property
    def key(self) -> str:
        """Equal for conversations in which the same is said by the same roles, or the first picture is the same.

        It decides what is held out: with many questions about a picture, no held-out one is about a picture seen.
        """
        if self.pictures:
            return self.pictures[0].digest.hex()
        return "\0".join(part for message in self.messages for part in (message.role, *message.texts))


def conversation_of(row: Any, chat_format: ChatFormat, where: object, pictures: bool = False) -> Conversation:
    """Reads a row.

    Args:
        row: any JSON value.
        chat_format: `auto` finds it by the row's keys.
        where: file and row; its text is in the messages of errors.
        pictures: whether it may have pictures, which are those of its messages or of the row.

    Raises:
        UserError: the row is no conversation of the format, or has no assistant turn; it has pictures and may not, more
            or fewer than placeholders for them, or one in an answer.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds {kind_of(row)}, not an object with a conversation")
    turns = _READERS[_format_of(row, chat_format, where)](row, where)
    turns = place_row_pictures(turns, row, where) if pictures else _without_pictures(turns, where)
    if (system := row.get("system")) not in (None, "") and not (turns and turns[0].role == "system"):
        turns = [Message({"role": "system", "content": require_text(system, "system", where)}), *turns]
    if not turns:
        raise UserError(f"{where}: the conversation has no messages")
    if not any(message.role == "assistant" for message in turns):
        raise UserError(f"{where}: the conversation has no assistant turn")
    return Conversation(tuple(turns), _tools(row, where), _template_arguments(row, where), where)


def _without_pictures(turns: list[Message], where: object) -> list[Message]:
    for number, message in enumerate(turns, 1):
        if message.references:
            raise UserError(
                f"{where}: message {number} ({message.role}): holds a picture: give --pictures, with the tokenizer of "
                "a vision-language model"
            )
    return turns


def _format_of(row: dict[str, Any], chat_format: ChatFormat, where: object) -> str:
    for name, alternatives in _KEYS.items():
        if chat_format not in ("auto", name):
            continue
        if any(row.keys() >= keys for keys in alternatives):
            return name
        if chat_format != "auto":
            raise UserError(f"{where}: --chat-format {name} needs {_described(name)} ({keys_of(row)})")
    known = "; ".join(map(_described, _KEYS))
    raise UserError(f"{where}: holds no conversation ({keys_of(row)}); its keys must be one of: {known}")


def _described(name: str) -> str:
    return " and ".join(sorted(_KEYS[name][0], key=_COLUMN_ORDER.index))


def _messages(row: dict[str, Any], where: object) -> list[Message]:
    return _turns(row["messages"], "messages", where)


def _sharegpt(row: dict[str, Any], where: object) -> list[Message]:
    key = "conversations" if "conversations" in row else "conversation"
    return _turns(row[key], key, where)


def _alpaca(row: dict[str, Any], where: object) -> list[Message]:
    question = require_text(row["instruction"], "instruction", where)
    if given := row.get("input"):
        question += "\n" + require_text(given, "input", where)
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{where}: 'history' must be a list of pairs, a question and its answer")
    said = [require_text(text, "history", where) for pair in pairs for text in pair]
    said += [question, require_text(row["output"], "output", where)]
    return [
        Message({"role": role, "content": text}, role == "assistant")
        for role, text in zip(["user", "assistant"] * (len(said) // 2), said, strict=True)
    ]


def _prompt_completion(row: dict[str, Any], where: object) -> list[Message]:
    """Assistant turns of the prompt are no answers."""
    prompt, completion = (
        [Message({"role": role, "content": row[key]})] if isinstance(row[key], str) else _turns(row[key], key, where)
        for key, role in (("prompt", "user"), ("completion", "assistant"))
    )
    answers = [
        replace(each, is_answer=each.role == "assistant" and not each.excluded, excluded=False) for each in completion
    ]
    return [*(replace(each, is_answer=False, excluded=False) for each in prompt), *answers]


def _finevision(row: dict[str, Any], where: object) -> list[Message]:
    """Questions and answers about the pictures of the row, which come before the first question."""
    pairs = row["texts"]
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise UserError(f"{where}: 'texts' must be a list of objects with 'user' and 'assistant'")
    said = [(role, require_text(pair.get(role), role, where)) for pair in pairs for role in ("user", "assistant")]
    messages = [Message({"role": role, "content": text}, role == "assistant") for role, text in said]
    return before_question(messages, len(row["images"] or []), where)


def _turns(value: Any, key: str, where: object) -> list[Message]:
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        # As `datasets` has a sequence of objects: an object of sequences.
        value = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(value, list):
        raise UserError(f"{where}: {key!r} is {kind_of(value)}, not a list of messages")
    return [message_of(turn, Within(where, f": message {number}")) for number, turn in enumerate(value, 1)]


def _tools(row: dict[str, Any], where: object) -> list[dict[str, Any]] | None:
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():  # as columns of tables have it, whose structs have one type
        tools = parse_json(tools, Within(where, ": 'tools'"))
    if not tools:
        return None
    if not isinstance(tools, list):
        raise UserError(f"{where}: 'tools' is {kind_of(tools)}, not a list of JSON schemas")
    found = [parse_json(tool, Within(where, ": 'tools'")) if isinstance(tool, str) else tool for tool in tools]
    for tool in found:
        if not isinstance(tool, dict):
            raise UserError(f"{where}: 'tools' holds {kind_of(tool)}, not only JSON schemas")
    return found


def _template_arguments(row: dict[str, Any], where: object) -> dict[str, Any]:
    arguments = row.get("chat_template_kwargs") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: 'chat_template_kwargs' is {kind_of(arguments)}, not an object")
    return arguments


_READERS: dict[str, Callable[[dict[str, Any], object], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "finevision": _finevision,
}
# By which keys a row is recognised, in this order.
_KEYS: dict[str, tuple[set[str], ...]] = {
    "messages": ({"messages"},),
    "sharegpt": ({"conversations"}, {"conversation"}),
    "prompt-completion": ({"prompt", "completion"},),
    "alpaca": ({"instruction", "output"},),
    "finevision": ({"texts", "images"},),
}
_COLUMN_ORDER = (
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "chat_template_kwargs",
    "texts",
    *ROW_PICTURES,
)


def without_nulls(value: Any) -> Any:
    """A JSON value without keys whose value is null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def columns_of(names: Iterable[str], pictures: bool = False) -> list[str]:
    """Those of a table's columns that a conversation may be read from, and its pictures where it may have some."""
    return [name for name in names if name in _COLUMN_ORDER and (pictures or name not in ROW_PICTURES)]
