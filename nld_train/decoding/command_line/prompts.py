"""Files of prompts: a line of text each, or a JSON object on each line, which can be a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nld_train.data.chat.prompt import Message
from nld_train.data.records import parse_record, text_under
from nld_train.data.text_files import FileFormat, file_format, open_text
from nld_train.errors import UserError

_KEY = "prompt"
# Of a conversation, the tools that it may call, and the ids of a prompt, which are taken as they are.
_MESSAGES, _TOOLS, _IDS = "messages", "tools", "prompt_token_ids"
# The ids that follow the prompt in the set from which it was taken.
_CONTINUATION = "continuation_token_ids"


@dataclass(frozen=True)
class Prompt:
    """A text to continue, or a conversation to answer.

    Attributes:
        where: the file and the number of the line, or the option, for messages.
        text: the prompt; None for a conversation.
        messages: of the conversation, the last one to be answered; empty for a text.
        tools: of the conversation, as JSON schemas.
        token_ids: the ids of the text, where they are given.
        continuation: the ids of the true text after the prompt, where they are given.
        folder: from which relative paths of pictures in the conversation start.
        pictures: paths of pictures beside the text.
    """

    where: str
    text: str | None = None
    messages: Sequence[Message] = ()
    tools: Sequence[Any] | None = None
    token_ids: tuple[int, ...] | None = None
    continuation: tuple[int, ...] | None = None
    folder: str = ""
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        where: the file and the number of the line, for messages.
        text: without its line break.
    """

    where: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: of JSONL the texts under "prompt" or the conversations under "messages", else the lines.

    Raises:
        UserError: as `lines_of`; or a prompt is missing, empty, neither text nor conversation, or ends with an answer.
    """
    kind, lines = lines_of(path)
    return [replace(_prompt(line, kind), folder=str(path.parent)) for line in lines]


def lines_of(path: Path) -> tuple[FileFormat, list[Line]]:
    """What a file of prompts holds by its name, and its lines; of JSONL without blank ones.

    A line ends at a line break only: other characters that end lines in Unicode, such as U+2028, may be unescaped in
    JSON.

    Raises:
        UserError: it cannot be read, is neither text nor JSONL, is not UTF-8, or is empty.
    """
    try:
        kind = file_format(str(path))
        if kind == "parquet":
            raise UserError(f"{path}: Parquet is not read here: write the prompts as JSONL or text")
        with open_text(str(path)) as file:
            lines = [_line(path, number, raw) for number, (_, raw) in enumerate(file.lines(), start=1)]
    except UserError as error:
        raise UserError(f"--prompts {error}") from error
    if kind == "jsonl":
        lines = [line for line in lines if line.text.strip()]
    if not lines:
        raise UserError(f"--prompts {path}: holds no prompt")
    return kind, lines


def _line(path: Path, number: int, raw: bytes) -> Line:
    try:
        return Line(f"--prompts {path}:{number}", raw.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: is not UTF-8 at byte {error.start} of the line") from error


def _prompt(line: Line, kind: FileFormat) -> Prompt:
    text: str | bytes | None = line.text
    if kind == "jsonl":
        record = parse_record(line.text, line.where)
        if isinstance(record, dict) and record.get(_MESSAGES) is not None:
            return Prompt(
                line.where, messages=checked_messages(record[_MESSAGES], line.where), tools=_tools(record, line)
            )
        text = text_under(record, _KEY, line.where, f"each line must be an object with a text under {_KEY!r}")
        ids = {key: _ids(record, key, line.where) for key in (_IDS, _CONTINUATION)}
        return Prompt(line.where, _checked(text, line.where), token_ids=ids[_IDS], continuation=ids[_CONTINUATION])
    return Prompt(line.where, _checked(text, line.where))


def _checked(text: str | bytes | None, where: str) -> str:
    if not text:
        raise UserError(f"{where}: the prompt is empty")
    assert isinstance(text, str)
    return checked_characters(text, where)


def _ids(record: Any, key: str, where: str) -> tuple[int, ...] | None:
    """The ids under a key of a line; None where it has none."""
    if not isinstance(record, dict) or key not in record:
        return None
    value = record[key]
    if not isinstance(value, list) or not value or not all(type(token) is int for token in value):
        raise UserError(f"{where}: {key} must be a list of token ids")
    return tuple(value)


def _tools(record: dict[str, Any], line: Line) -> Sequence[Any] | None:
    tools = record.get(_TOOLS)
    if tools is None or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return tools or None
    raise UserError(f"{line.where}: {_TOOLS} must be a list of JSON schemas")


def checked_messages(value: Any, where: str) -> Sequence[Message]:
    """The messages of a conversation that is to be answered; what roles there are is for the chat template to say.

    Args:
        value: of JSON.
        where: the file and line, for messages.

    Raises:
        UserError: it is no list of objects with a role, is empty, or ends with an answer.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {_MESSAGES} must be a list of objects with role and content, at least one")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"{where}: message {number} must be an object with a text under 'role'")
        content = message.get("content")
        if isinstance(content, str):
            checked_characters(content, where)
        elif not isinstance(content, list | None):
            raise UserError(f"{where}: the content of message {number} is no text")
    if value[-1]["role"] == "assistant":
        raise UserError(f"{where}: ends with an answer; {_MESSAGES} must end with the message to be answered")
    return value


def checked_characters(text: str, where: str) -> str:
    """A text of whole characters, which JSON need not be.

    Raises:
        UserError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{where}: holds {half}, half of a surrogate pair and no character") from error
    return text
