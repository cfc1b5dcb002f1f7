"""The one reader of JSON and YAML that this program did not just write: model directories, data, prompts, old runs.

Every way in which such text can be wrong becomes a `UserError` of one line with the file, and the line where there is
one. Values are not checked here: NaN and numbers of any size are valid, and who uses a number checks it.
"""

from __future__ import annotations

import json
import os
import sys
import types
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

from nld_train.errors import UserError
from nld_train.files import open_regular

# Far above any tokenizer or index; a file beyond it would only fill the memory.
MAX_BYTES = 512 << 20
_SHOWN_CHARACTERS = 120
_LARGEST = sys.float_info.max

Record = TypeVar("Record")


def read_json(path: Path) -> Any:
    """The value in a file of JSON.

    Raises:
        UserError: it cannot be read, is no regular file, is larger than `MAX_BYTES`, or is not JSON in UTF-8.
    """
    return parse_json(read_bytes(path), str(path))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises as `read_json`, and for any other value."""
    return _object(read_json(path), str(path))


def read_bytes(path: Path, where: str | None = None) -> bytes:
    """The content of a small regular file, called `where` in messages; raises as `read_json`."""
    where = where or str(path)
    try:
        with open_regular(path) as file:
            # No more than the file has: Python allocates what is asked for.
            content = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES) + 1)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{where}: has more than {MAX_BYTES >> 20} MiB, which no file of its kind has")
    return content


def parse_json(text: str | bytes, where: object, duplicates: bool = False) -> Any:
    """The value that a text is; bytes are UTF-8, with or without a byte order mark.

    Args:
        text: the whole content of a file, or a line of it.
        where: the file, and its line where there is one, for messages.
        duplicates: whether a key may occur twice in an object, which then has the last value, as in text that people
            collected; a setting that is given twice is refused.

    Raises:
        UserError: it is not JSON, is not UTF-8, names a key twice, is nested too deeply, or has an integer with more
            digits than Python converts.
    """
    decoded = _decoded(text, where)
    try:
        return json.loads(decoded, object_pairs_hook=None if duplicates else _unique)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UserError(f"{where}: not JSON ({error.msg.removesuffix(' at')} at {position})") from error
    except _DuplicateKeyError as error:
        raise UserError(f"{where}: {error.key} is duplicated") from error
    except ValueError as error:  # what remains is Python's limit
        digits = sys.get_int_max_str_digits()
        raise UserError(f"{where}: has an integer of more than {digits} digits, which cannot be read") from error
    except RecursionError as error:
        raise UserError(f"{where}: is nested too deeply to be read") from error


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object that a text is; raises as `parse_json`, and for any other value."""
    return _object(parse_json(text, where), where)


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The value that a text of YAML is, with plain types only; arguments as for `parse_json`.

    Raises:
        UserError: it is not YAML or not UTF-8, is nested too deeply, or has a value that cannot be converted.
    """
    import yaml

    decoded = _decoded(text, where)
    try:
        return yaml.safe_load(decoded)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{where}: is nested too deeply to be read") from error
    except (ValueError, TypeError, OverflowError) as error:
        # Such as a date that does not exist, an integer of thousands of digits, or a list as a key.
        raise UserError(f"{where}: not valid YAML: {brief(str(error))}") from error


def brief(value: Any) -> str:
    """A value as JSON for a message; only its beginning where it is long."""
    shown = ""
    try:
        # Piece by piece: the aliases of a small YAML file can make a value of any size.
        for piece in json.JSONEncoder(ensure_ascii=False, default=lambda other: type(other).__name__).iterencode(value):
            shown += piece
            if len(shown) > _SHOWN_CHARACTERS:
                return f"{shown[:_SHOWN_CHARACTERS]}..."
    except (ValueError, TypeError):  # an integer of thousands of digits, which YAML can write as hexadecimal; a key
        return f"{shown}..."
    return shown


def as_record(kind: type[Record], settings: dict[str, Any], where: str) -> Record:
    """A dataclass of plain values from a JSON object, whose other keys are left out.

    Args:
        kind: its fields are of the types of JSON: str, int, float, list[str], dict[str, str], dict[str, Any], another
            such dataclass, or None beside one of them. Those with a default may be missing.
        settings: the object.
        where: the file, for messages.

    Raises:
        UserError: a key is missing or of another type; names it.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):  # type: ignore[arg-type]
        name, hint = field.name, hints[field.name]
        if name not in settings:
            if field.default is not MISSING or field.default_factory is not MISSING:
                continue
            raise UserError(f"{where}: {name} is missing")
        if not _is_of(settings[name], hint):
            raise UserError(f"{where}: {name} must not be {brief(settings[name])}")
        inner: Any = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), None)
        given = settings[name]
        found[name] = as_record(inner, given, f"{where}: {name}") if inner is not None and given is not None else given
    return kind(**found)


def _is_of(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is types.UnionType:
        return any(_is_of(value, option) for option in inner)
    if is_dataclass(kind):  # its fields are checked by themselves
        return isinstance(value, dict)
    if kind is dict:
        return isinstance(value, dict) and all(_is_of(item, inner[1]) for item in value.values())
    if kind is list:
        return isinstance(value, list) and all(_is_of(item, inner[0]) for item in value)
    if kind is float:
        return is_finite_number(value)
    return kind is Any or (isinstance(value, kind) and not isinstance(value, bool))


def is_finite_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of JSON is a number that a float can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


class _DuplicateKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated keys: of these, readers use the first or the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return found


def _decoded(text: str | bytes, where: object) -> str:
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start})") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a JSON object, not {type(value).__name__}")
    return value
