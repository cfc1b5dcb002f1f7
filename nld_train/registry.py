"""Parts that are named by a string and imported when they are used.

A table of such strings lets a lower package use a class of a higher one without importing it: training runs hooks of
evaluation, and starts from what conversion reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nld_train.errors import UserError


def resolve(reference: str) -> Any:
    """Imports what `module:name` names.

    Raises:
        ImportError, AttributeError: there is no such module, or no such name in it.
    """
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def find(name: str, table: Mapping[str, str], key: str) -> Any:
    """The object that a setting names.

    Args:
        name: of an entry of the table, or `module:name` for one that is in no table.
        table: name -> `module:name`.
        key: of the setting, for the message.

    Raises:
        UserError: the name is unknown, or cannot be imported.
    """
    refuse_unknown(name, table, key)
    reference = table.get(name, name)
    try:
        return resolve(reference)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}: {reference} cannot be imported ({error}); {_valid(table)}") from error


def refuse_unknown(name: str, table: Mapping[str, str], key: str) -> None:
    """Raises `UserError` for a name that is neither in a table nor of the form `module:name`; imports nothing."""
    module, colon, attribute = name.partition(":")
    if name not in table and not (module and colon and attribute):
        raise UserError(f"{key}: {name!r} is unknown; {_valid(table)}")


def _valid(table: Mapping[str, str]) -> str:
    return f"must be one of {', '.join(table)}, or MODULE:NAME of an importable one"
