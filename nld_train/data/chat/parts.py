"""The content of a message: a text, or parts that are texts and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nld_train.data.records import kind_of
from nld_train.errors import UserError
from nld_train.outside_json import brief

# The types of parts that are pictures, and the keys of such a part that may say where it is: OpenAI's, and those of
# transformers' chat templates.
PICTURE_TYPES = ("image_url", "image", "input_image")
_REFERENCES = ("image_url", "image", "url", "path", "base64", "bytes")

# A text, or parts as chat templates read them: `{type: text, text: ..}` and `{type: image}`.
Content = str | list[dict[str, str]]
# Where a picture is (`pictures.references`), None for the next one of the row's own.
Reference = Any


def content_of(content: Any, where: object) -> tuple[Content, tuple[Reference, ...]]:
    """The content of a message, and its pictures in order.

    Args:
        content: a text, or a list of parts.
        where: file, row and message, for messages of errors.

    Returns:
        The text of all parts, or where there are pictures the parts.

    Raises:
        UserError: a part is neither text nor picture.
    """
    if not isinstance(content, list):
        return require_text(content, "content", where), ()
    return with_pictures(_part(part, where) for part in content)


def with_pictures(parts: Iterable[str | tuple[Reference]]) -> tuple[Content, tuple[Reference, ...]]:
    """As `content_of`, of texts and of references in tuples; texts beside each other are one."""
    found: list[dict[str, str]] = []
    references: list[Reference] = []
    for part in parts:
        if isinstance(part, tuple):
            references.append(part[0])
            found.append({"type": "image"})
        elif found and found[-1]["type"] == "text":
            found[-1]["text"] += part
        elif part or not found:
            found.append({"type": "text", "text": part})
    if not references:
        return found[0]["text"] if found else "", ()
    return [part for part in found if part.get("text") != ""], tuple(references)


def _part(part: Any, where: object) -> str | tuple[Reference]:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise UserError(f"{where}: a part of its content is {kind_of(part)}, not an object with 'type' and 'text'")
    kind = part.get("type", "text")
    if kind in PICTURE_TYPES:
        return (_reference(part, where),)
    if kind != "text":
        raise UserError(f"{where}: a part of its content is of type {brief(kind)}; the model reads text and pictures")
    return require_text(part.get("text"), "text", where)


def _reference(part: dict[str, Any], where: object) -> Reference:
    for key in _REFERENCES:
        value = part.get(key)
        if key == "image_url" and isinstance(value, dict):  # OpenAI's has a level of detail beside the URL
            value = value.get("url")
        if value is not None:
            if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
                value = f"data:image;base64,{value}"
            return value
    if part.get("type") == "image_url":
        raise UserError(f"{where}: a part of type image_url has no url")
    return None


def require_text(value: Any, key: str, where: object) -> str:
    """A value that must be text.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} is {kind_of(value)}, not text")
    return value
