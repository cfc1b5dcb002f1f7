"""The reference of all keys, `docs/keys.md`, from the descriptions and ranges in `schema`.

python -m nld_train.config.describe > docs/keys.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from nld_train.config.load import describe_type
from nld_train.config.ranges import UNIONS, constraints, item_hint, words
from nld_train.config.schema import Config, StageConfig

_HEAD = """# Keys of the configuration

`nld-train KEY=VALUE` changes a key; [configuration](configuration.md) describes where the other values come from. A
number outside of the range given here, and settings that contradict each other, are refused before anything starts.

This page is made from `nld_train/config/schema` by `python -m nld_train.config.describe > docs/keys.md`.
"""


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, its valid values in words, and what it is."""

    name: str
    valid: str
    description: str


def keys_of(kind: Any, prefix: str = "") -> Iterator[Key]:
    """All keys of a dataclass of `schema` and of those inside it, in their order.

    Args:
        kind: the dataclass.
        prefix: of the names, including the dot at its end.
    """
    plain, full = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        name, hint = f"{prefix}{field.name}", plain[field.name]
        if get_origin(hint) is dict:
            yield from keys_of(get_args(hint)[1], f"{name}.<name>.")
        elif not is_dataclass(hint):
            yield Key(name, _valid(hint, full[field.name]), _description(full[field.name]))
        for group in (hint, *(get_args(hint) if get_origin(hint) in UNIONS else ())):
            if is_dataclass(group):
                yield from keys_of(group, f"{name}.")


def _valid(plain: Any, full: Any) -> str:
    ranges = [words(bound) for bound in constraints(full)]
    if get_origin(plain) is tuple:
        ranges += [words(bound) for bound in constraints(item_hint(full))]
    return ", ".join([describe_type(plain), *ranges])


def _description(hint: Any) -> str:
    texts = [part for part in get_args(hint) if isinstance(part, str)] if get_origin(hint) is Annotated else []
    return texts[0] if texts else ""


def page() -> str:
    """The text of `docs/keys.md`."""
    parts = [_HEAD]
    for field in fields(Config):
        kind = StageConfig if field.name == "stages" else get_type_hints(Config)[field.name]
        prefix = "stages.<name>." if field.name == "stages" else f"{field.name}."
        rows = [f"| `{key.name}` | {key.valid} | {key.description} |" for key in keys_of(kind, prefix)]
        title = f"## {field.name}\n\n{(kind.__doc__ or '').splitlines()[0]}\n"
        parts.append("\n".join([title, "| key | valid | |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
