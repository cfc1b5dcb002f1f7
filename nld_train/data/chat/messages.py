"""One message of a conversation: its role, its text, its tool calls, and whether it is an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nld_train.data.chat.parts import Reference, content_of, require_text
from nld_train.data.pictures.references import Picture
from nld_train.data.records import Within, keys_of, kind_of
from nld_train.errors import UserError
from nld_train.outside_json import brief, parse_json

# Names of roles in chat data, and what chat templates call them.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
# Keys of the reasoning, in the order in which transformers looks for it. Templates read the first, gpt-oss the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Keys that say whether a message is learned.
_LOSS = ("loss", "weight")


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        content: what a chat template gets: `role`, `content`, `tool_calls`, `reasoning_content`, ..
        is_answer: whether it is learned.
        excluded: whether the data say that it is not learned.
        references: where its pictures are, in the order of their parts.
        pictures: the same, read.
    """

    content: dict[str, Any]
    is_answer: bool = False
    excluded: bool = False
    references: tuple[Reference, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def role(self) -> str:
        """Its role, as templates call it."""
        return str(self.content["role"])

    @property
    def texts(self) -> Iterator[str]:
        """Its reasoning, its text without pictures, and its tool calls, which may be empty."""
        yield next((self.content[key] for key in _REASONING if self.content.get(key)), "")
        content = self.content.get("content") or ""
        yield content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        if calls := self.content.get("tool_calls"):
            yield json.dumps(calls, ensure_ascii=False, sort_keys=True)


def message_of(turn: Any, where: object) -> Message:
    """Reads a message of the formats `role`/`content` and `from`/`value`.

    Args:
        turn: any JSON value.
        where: file, row and number of the message, for messages of errors.

    Raises:
        UserError: it has an unknown role, no content, or content that is no text.
    """
    if not isinstance(turn, dict):
        raise UserError(f"{where} is {kind_of(turn)}, not an object with 'role' and 'content'")
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    named = turn.get(role_key)
    if role_key not in turn:
        raise UserError(f"{where} has no 'role' and no 'from' ({keys_of(turn)})")
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise UserError(f"{where} has the unknown role {brief(named)}: system, user, assistant and tool are known")
    where = Within(where, f" ({named})")
    excluded = _is_excluded(turn, role, where)
    content, references = _content(turn, role_key, content_key, where)
    if not content.keys() & {"content", "tool_calls", *_REASONING}:
        raise UserError(f"{where} has no {content_key!r}")
    return Message({"role": role, **content}, role == "assistant" and not excluded, excluded, references)


def _content(
    turn: dict[str, Any], role_key: str, content_key: str, where: object
) -> tuple[dict[str, Any], tuple[Reference, ...]]:
    """A message without its role, and without what is null, which templates would write as a word; and its pictures."""
    left_out = (role_key, content_key, "tool_calls", *_LOSS)
    content = {key: value for key, value in turn.items() if key not in left_out and value is not None}
    given, calls = turn.get(content_key), turn.get("tool_calls")
    text, references = (None, ()) if given is None else content_of(given, where)
    if turn[role_key] == "function_call":
        said = require_text(text or "", content_key, where)
        text, calls = None, parse_json(said, Within(where, f": {content_key!r}"))
    if text is not None:
        content["content"] = text
    if calls:
        content["tool_calls"] = _tool_calls(calls, where)
    reasoning = [require_text(content[key], key, where) for key in _REASONING if key in content]
    if reasoning:
        # Before 5.23 transformers passes keys on as they are, and a template would leave the others out.
        content = {"thinking": reasoning[0], **content, "reasoning_content": reasoning[0]}
    return content, references


def _is_excluded(turn: dict[str, Any], role: str, where: object) -> bool:
    """Whether the message is said not to be learned: `loss: 0` or `weight: 0`."""
    for key in _LOSS:
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise UserError(f"{where}: {key!r} is {brief(value)}; a message is learned (1) or not (0)")
        if value and role != "assistant":
            raise UserError(f"{where}: {key!r} is {brief(value)}, but only assistant turns are learned")
        if not value:
            return True
    return False


def _tool_calls(calls: Any, where: object) -> list[dict[str, Any]]:
    """Tool calls in the form that templates read: arguments are objects, not texts of JSON."""
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise UserError(f"{where}: 'tool_calls' is {kind_of(calls)}, not a list")
    return [_tool_call(call, where) for call in calls]


def _tool_call(call: Any, where: object) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{where}: a tool call must be an object with a 'function' that has a 'name'")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, Within(where, f": 'arguments' of the tool call {function['name']!r}"))
    rest = {key: value for key, value in call.items() if key not in ("name", "arguments")}
    return {"type": "function", **rest, "function": {**function, "arguments": arguments or {}}}
