"""The metadata of a model card: the YAML at its beginning, which the Hub reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.errors import UserError
from nld_train.outside_json import parse_yaml, read_bytes
from nld_train.printable import printable_json

CARD = "README.md"
# Files with the terms of a model, which go with what is made of it.
LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
# Keys of a license: its identifier, and name and address of one that has none.
_LICENSE_KEYS = ("license", "license_name", "license_link")
_METADATA = re.compile(r"\A---\s*\n(.*?\n)---\s*$", re.DOTALL | re.MULTILINE)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# A folder of the Hub's cache: models--OWNER--NAME/snapshots/COMMIT.
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


@dataclass(frozen=True)
class Origins:
    """What is known about the model that a checkpoint goes back to.

    Attributes:
        base_model: its name on the Hub; None where it is not known.
        license: its license, under the keys of a card; empty where its card names none.
        languages: codes of its languages; empty where its card names none.
    """

    base_model: str | None
    license: dict[str, Any]
    languages: tuple[str, ...] = ()


def origins(directory: Path | None, on_hub: str | None) -> Origins:
    """What the card of the original model says.

    Args:
        directory: of its configuration; None where there is none.
        on_hub: its name on the Hub, where that is known.
    """
    card = {} if directory is None else read_metadata(directory / CARD)
    above = card.get("base_model")
    candidates = [on_hub, *(above if isinstance(above, list) else [above])]
    base = next((name for name in candidates if isinstance(name, str)), None)
    named = card.get("language")
    languages = tuple(one for one in (named if isinstance(named, list) else [named]) if isinstance(one, str))
    return Origins(base, {key: card[key] for key in _LICENSE_KEYS if isinstance(card.get(key), str)}, languages)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a card; empty for none, and for one that is damaged, which says nothing that could be kept."""
    if not path.is_file():
        return {}
    try:
        found = _METADATA.match(read_bytes(path).decode(errors="replace"))
        values = parse_yaml(found[1], str(path)) if found else {}
    except UserError:
        return {}
    return values if isinstance(values, dict) else {}


def hub_name(directory: Path) -> str | None:
    """OWNER/NAME of a model in the cache of the Hub; None for another folder, which does not tell its name."""
    for part in reversed(directory.resolve().parts):
        if (found := _CACHED.fullmatch(part)) is not None:
            return f"{found[1]}/{found[2]}"
    return None


def check_license(identifier: str) -> None:
    """Refuses what cannot be the identifier of a license.

    Raises:
        UserError: it has other characters than such identifiers.
    """
    if not _IDENTIFIER.fullmatch(identifier):
        raise UserError(f"--license {identifier}: must be an identifier such as apache-2.0, mit, cc-by-4.0 or other")


def check_language(code: str) -> None:
    """Refuses what cannot be the code of a language.

    Raises:
        UserError: it is no code of two or three letters, with or without a script or a region.
    """
    if not _LANGUAGE.fullmatch(code):
        raise UserError(f"--language {code}: must be a code such as en, de, zh or pt-BR; repeat the option for more")


def metadata_lines(
    known: Origins,
    license_name: str | None,
    languages: tuple[str, ...],
    tags: tuple[str, ...],
    task: str = "text-generation",
) -> list[str]:
    """The metadata of an export's card.

    Args:
        known: about the original model.
        license_name: identifier of the license that the user names; None for that of the original model.
        languages: codes that the user names; empty for those of the original model.
        tags: of the model.
        task: that of the Hub which the model is for.
    """
    values = {"license": license_name} if license_name else known.license
    if known.base_model:
        values = {**values, "base_model": known.base_model}
    # A JSON string is one of YAML.
    lines = [f"{key}: {printable_json(value)}" for key, value in values.items()]
    spoken = languages or known.languages
    listed = ["language:", *(f"- {printable_json(code)}" for code in spoken)] if spoken else []
    listed += ["tags:", *(f"- {tag}" for tag in tags)] if tags else []
    return ["---", "library_name: transformers", f"pipeline_tag: {task}", *lines, *listed, "---"]
