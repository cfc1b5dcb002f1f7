"""The text of a record: a JSON object, or the value of a column. Documents and prompts are taken from it alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nld_train.errors import UserError
from nld_train.outside_json import parse_json

_SHOWN_KEYS = 12
# Keys of one turn of a conversation in the usual formats: its speaker and its text.
_TURNS = (("role", "content"), ("from", "value"))


@dataclass(frozen=True)
class Within:
    """A part of a record, for messages of errors. It becomes text only then: to find the number of a line is slow."""

    whole: object
    part: str

    def __str__(self) -> str:
        return f"{self.whole}{self.part}"


def parse_record(text: str, where: object) -> Any:
    """The JSON value of one line; of a key that occurs twice, the last value.

    Raises:
        UserError: what `nld_train.outside_json.parse_json` refuses.
    """
    try:
        return parse_json(text.strip(), where, duplicates=True)
    except UserError as error:
        raise UserError(f"{error}; each line must be one JSON object") from error


def text_under(record: Any, key: str, where: object, cure: str) -> str | bytes | None:
    """The text under a key of a JSON object, or None where it is null.

    Args:
        record: any JSON value.
        key: of the text.
        where: file and line, for messages.
        cure: what a user can do when the text is under another key.

    Raises:
        UserError: it is no object, has no such key, or something other than text there.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: holds {kind_of(record)}, not an object with a text under {key!r}")
    if key not in record:
        for name, value in record.items():
            if _is_conversation(value):
                raise _conversation(where, name)
        raise UserError(f"{where}: no key {key!r} ({keys_of(record)}): {cure}")
    return checked_text(record[key], key, where, cure)


def checked_text(value: Any, key: str, where: object, cure: str) -> str | bytes | None:
    """A value that must be text (bytes are text that is not decoded yet) or null; arguments as for `text_under`.

    Raises:
        UserError: it is something else.
    """
    if value is None or isinstance(value, str | bytes):
        return value
    if _is_conversation(value):
        raise _conversation(where, key)
    raise UserError(f"{where}: {key!r} is {kind_of(value)}, not text: {cure}")


def _conversation(where: object, key: str) -> UserError:
    return UserError(
        f"{where}: is a conversation (turns with roles under {key!r}), not text; nld-data prepare --chat "
        "reads conversations"
    )


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, each an object with a speaker and a text."""
    if not isinstance(value, list) or not value:
        return False
    return any(all(isinstance(turn, dict) and turn.keys() >= {*names} for turn in value) for names in _TURNS)


def keys_of(record: dict[str, Any]) -> str:
    """The keys of an object for a message; only the first ones of many."""
    more = len(record) - _SHOWN_KEYS
    return ", ".join([*list(record)[:_SHOWN_KEYS], *([f"and {more} more"] if more > 0 else [])]) or "an empty object"


def kind_of(value: Any) -> str:
    """What a JSON value is, for a message."""
    names = {dict: "an object", list: "a list", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
