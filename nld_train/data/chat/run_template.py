"""The chat template of a run: that with which its conversations were rendered.

It need not be the tokenizer's (`nld-data prepare --chat-template`), and the tokenizer's can have been changed since.
What was trained on is what answers must be asked with, so it is copied with the tokenizer into checkpoints and exports.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from nld_train.config.schema import Config, SourceConfig
from nld_train.data.manifest import read_manifest
from nld_train.data.sample_sets import train_sources
from nld_train.data.tokenizer_files import CHAT_TEMPLATE, MORE_TEMPLATES
from nld_train.errors import UserError
from nld_train.outside_json import parse_object, read_bytes

_TOKENIZER_CONFIG = "tokenizer_config.json"
# Of processors, from before templates had a file of their own.
_LEGACY = "chat_template.json"


def template_file(prefix: str) -> Path:
    """The template with which a set of conversations was rendered."""
    return Path(f"{prefix}.{CHAT_TEMPLATE}")


def run_template(config: Config) -> str | None:
    """The template of the last stage of a run that is trained on conversations.

    Returns:
        None without such a stage, or where its sets do not exist any more.

    Raises:
        UserError: as `require_one_template`.
    """
    for name in reversed(config.run.stages):
        if prefix := require_one_template(f"stages.{name}", train_sources(config, name)):
            return _read(prefix)
    return None


def require_one_template(key: str, sources: Iterable[SourceConfig]) -> str | None:
    """The first of the sets that consists of conversations; None without one.

    A model can be asked with one template only, and conversations that were rendered with two teach it neither well.

    Args:
        key: of the sets, for messages.
        sources: the sets.

    Raises:
        UserError: two of them were rendered with different templates; or the template of one is missing or changed.
    """
    manifests = {source.prefix: read_manifest(source.prefix) for source in sources}
    hashes = {prefix: m.chat.template_hash for prefix, m in manifests.items() if m is not None and m.chat is not None}
    first = next(iter(hashes), None)
    for prefix, found in hashes.items():
        _read(prefix)
        if first is not None and found != hashes[first]:
            raise UserError(
                f"{key}: {first} and {prefix} were rendered with different chat templates (hashes "
                f"{hashes[first][:12]} and {found[:12]}); prepare both with the same --chat-template"
            )
    return first


def _read(prefix: str) -> str:
    """The text of a set's template, which is the one in its manifest."""
    path, manifest = template_file(prefix), read_manifest(prefix)
    assert manifest is not None
    assert manifest.chat is not None
    content = read_bytes(path)
    if (found := hashlib.sha256(content).hexdigest()) != manifest.chat.template_hash:
        raise UserError(
            f"{path} is not the template with which {prefix} was rendered (hash {found[:12]} instead of "
            f"{manifest.chat.template_hash[:12]}): restore it, or prepare the set again"
        )
    return content.decode()


def template_note(config: Config, tokenizer: dict[str, bytes]) -> str | None:
    """A line for the user where the template of a run's conversations is not that of `data.tokenizer`.

    Args:
        config: the run.
        tokenizer: the files of that tokenizer.
    """
    trained, own = run_template(config), own_template(tokenizer)
    if trained is None or own is None or trained == own:
        return None
    return (
        "the chat template is that of the conversations, and not that of data.tokenizer; checkpoints carry the former"
    )


def own_template(files: dict[str, bytes]) -> str | None:
    """The template in the files of a tokenizer, the default one of several; None without one."""
    if CHAT_TEMPLATE in files:
        return files[CHAT_TEMPLATE].decode(errors="replace")
    settings = parse_object(files.get(_TOKENIZER_CONFIG, b"{}"), _TOKENIZER_CONFIG)
    given = settings.get("chat_template")
    if isinstance(given, list):
        given = next((each.get("template") for each in given if each.get("name") == "default"), None)
    return given if isinstance(given, str) else None


def with_template(files: dict[str, bytes], template: str) -> dict[str, bytes]:
    """The files of a tokenizer (`tokenizer_files.read_tokenizer`) with another chat template, and with no other one."""
    others = (_LEGACY, MORE_TEMPLATES)
    changed = {name: content for name, content in files.items() if name.partition("/")[0] not in others}
    if _TOKENIZER_CONFIG in files:
        settings = parse_object(files[_TOKENIZER_CONFIG], _TOKENIZER_CONFIG)
        if settings.pop("chat_template", None) is not None:
            changed[_TOKENIZER_CONFIG] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return changed | {CHAT_TEMPLATE: template.encode()}
