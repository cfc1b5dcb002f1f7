"""Checks type and range of values in a Hugging Face directory's JSON files.

Each function takes the path of the file (for messages), the JSON object with the value, and the key. It raises a
`UserError` that names file, key, value and the valid range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nld_train.errors import UserError
from nld_train.outside_json import brief, is_finite_number

_LARGEST = 2**53


def positive_integer(path: Path, config: dict[str, Any], key: str) -> int:
    """An integer above 0 that torch can compute with."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise UserError(f"{path}: {key} must be an integer above 0, but is {shown(config, key)}")
    return value


def number(path: Path, config: dict[str, Any], key: str, from_zero: bool = False) -> float:
    """A finite number above 0, or `from_zero`; Python also reads NaN, infinity and huge integers as JSON."""
    value = config.get(key)
    if is_finite_number(value) and (value > 0 or (from_zero and value == 0)):
        return float(value)
    valid = "of 0 or more" if from_zero else "above 0"
    raise UserError(f"{path}: {key} must be a number {valid}, but is {shown(config, key)}")


def shown(config: dict[str, Any], key: str) -> str:
    """A value as JSON, for a message."""
    return brief(config[key]) if key in config else "missing"


def is_token(value: Any, vocabulary: int) -> bool:
    """Whether a value is an id below the size of the vocabulary."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary


def named_tokens(path: Path, config: dict[str, Any], key: str, vocabulary: int) -> list[int]:
    """The ids under a key that has one, a list of them, or none."""
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(is_token(token, vocabulary) for token in ids):
        raise UserError(
            f"{path}: {key} must be an id of the vocabulary of {vocabulary}, or a list of them, "
            f"but is {shown(config, key)}"
        )
    return list(ids)
