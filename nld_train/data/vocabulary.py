"""Whether the ids of a model are those of a tokenizer or of a prepared set. Imports no transformers where it can.

A model whose special ids are not the tokenizer's trains without an error: its documents then end with a token that
decoding does not stop at. With another tokenizer a prompt becomes ids that mean something else to the weights.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.config.schema import ModelConfig
from nld_train.data.manifest import Manifest, read_manifest
from nld_train.data.tokenizer import load_tokenizer, tokenizer_hash
from nld_train.data.tokenizer_files import VOCABULARY_FILES
from nld_train.errors import UserError
from nld_train.outside_json import read_object

# Keys of `ModelConfig`, and what tokenizers call these tokens.
_SPECIAL = {
    "eos_token_id": "eos_token",
    "bos_token_id": "bos_token",
    "pad_token_id": "pad_token",
    "mask_token_id": "mask_token",
}
# From which the ids are read without transformers.
DEFINITION = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer.

    Attributes:
        size: its largest id + 1.
        special: the ids of the special tokens that it names, under the keys of `ModelConfig`.
    """

    size: int
    special: dict[str, int]


def read_vocabulary(directory: str) -> Vocabulary:
    """The ids of a Hugging Face tokenizer directory.

    Raises:
        UserError: there is no tokenizer, or it is damaged.
    """
    tokenizer_hash(directory)  # refuses what is no tokenizer
    definition = Path(directory, DEFINITION)
    if not definition.is_file():
        loaded = load_tokenizer(directory)
        given = {key: getattr(loaded, f"{name}_id", None) for key, name in _SPECIAL.items()}
        special = {key: token for key, token in given.items() if token is not None}
        return Vocabulary(max(loaded.get_vocab().values()) + 1, special)
    try:
        ids = _ids(read_object(definition))
        names = _special_strings(Path(directory))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{definition} or a file beside it is damaged ({type(error).__name__}: {error})") from error
    special = {key: ids[names[name]] for key, name in _SPECIAL.items() if names.get(name) in ids}
    return Vocabulary(max(ids.values(), default=-1) + 1, special)


def _ids(definition: dict[str, Any]) -> dict[str, int]:
    """Every token of a `tokenizer.json` with its id. Unigram models list tokens with their scores."""
    entries = definition["model"]["vocab"]
    ids = dict(entries) if isinstance(entries, dict) else {entry[0]: index for index, entry in enumerate(entries)}
    ids |= {token["content"]: token["id"] for token in definition.get("added_tokens") or ()}
    return {str(token): operator.index(index) for token, index in ids.items()}


def _special_strings(directory: Path) -> dict[str, str]:
    """The special tokens that a directory names; `tokenizer_config.json` overrides the older file, as in transformers.

    Each is a string, or an object with the string as `content`.
    """
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            given = read_object(directory / name)
            found |= {key: given[key] for key in _SPECIAL.values() if given.get(key) is not None}
    return {key: value["content"] if isinstance(value, dict) else str(value) for key, value in found.items()}


def check_tokenizer(directory: str, model: ModelConfig, key: str) -> None:
    """Refuses a tokenizer whose ids are not those of a model.

    Args:
        directory: of the tokenizer.
        model: the model.
        key: the key or option that named the tokenizer, for the message.

    Raises:
        UserError: the tokenizer has more ids than the model, or gives a special token another id; or it cannot be read.
    """
    vocabulary = read_vocabulary(directory)
    if vocabulary.size > model.vocab_size:
        raise UserError(
            f"{key}: the tokenizer {directory} has {vocabulary.size} ids and the model {model.vocab_size}: "
            "name the tokenizer that the model is made for"
        )
    for name, token in vocabulary.special.items():
        if (given := getattr(model, name)) != token:
            raise UserError(
                f"model.{name}={given}: the tokenizer {directory} ({key}) has {token}; set model.{name}={token}, or "
                "name the tokenizer that the model is made for"
            )


def check_special_ids(prefix: str, model: ModelConfig, tokenizer_path: str | None) -> None:
    """Refuses a model whose special ids are not those with which a set was prepared; passes a set without a manifest.

    Args:
        prefix: of the set.
        model: that is trained on it.
        tokenizer_path: directory of the tokenizer that goes with the model; None for the one that the manifest names,
            if it still exists.

    Raises:
        UserError: names the key and the right id.
    """
    manifest = read_manifest(prefix)
    if manifest is None:
        return
    if manifest.end_of_document not in (None, model.eos_token_id):
        end = manifest.end_of_document
        raise UserError(
            f"model.eos_token_id={model.eos_token_id}: the documents of {prefix} end with token {end}; set "
            f"model.eos_token_id={end}, or prepare the set again"
        )
    own = _tokenizer_of(manifest, prefix)
    if tokenizer_path is None and own is not None:
        check_tokenizer(own, model, f"of {prefix}")


def _tokenizer_of(manifest: Manifest, prefix: str) -> str | None:
    """The directory of a set's tokenizer, if it is still the one that prepared the set."""
    directory = manifest.tokenizer_directory(prefix)
    try:
        return directory if tokenizer_hash(directory) == manifest.tokenizer_hash else None
    except UserError:  # moved or damaged since; the set does not need it
        return None


def refuse_other_tokenizer(given: str, key: str, own: Iterable[Path], known: Iterable[str], model: ModelConfig) -> None:
    """Refuses a tokenizer in place of the one that the weights of a checkpoint were trained with.

    Args:
        given: directory of the tokenizer.
        key: the key or option that named it, for the message.
        own: directories that may contain the checkpoint's tokenizer; the first that does is compared.
        known: hashes of the tokenizers with which its training data were prepared; compared if no directory does.
        model: of the checkpoint; compared if nothing else is known.

    Raises:
        UserError: it is another tokenizer, or cannot be read.
    """
    found = tokenizer_hash(given)
    expected = set(known)
    has_definition = Path(given, DEFINITION).is_file()
    for directory in own:
        # Of two that are in different formats, the hashes differ in any case.
        if holds_tokenizer(directory) and Path(directory, DEFINITION).is_file() == has_definition:
            expected = {tokenizer_hash(str(directory))}
            break
    if expected and found not in expected:
        right = min(expected)
        raise UserError(
            f"{key}: {given} is another tokenizer (hash {found[:12]}) than the one that the weights were trained with "
            f"(hash {right[:12]}), so its ids mean other tokens; name that one"
        )
    if not expected:
        check_tokenizer(given, model, key)


def holds_tokenizer(directory: Path) -> bool:
    """Whether a directory has a file from which a tokenizer can be made."""
    return any((directory / name).is_file() for name in (DEFINITION, *VOCABULARY_FILES))


def training_hashes(prefixes: Iterable[str]) -> list[str]:
    """Hashes of the tokenizers that prepared some sets, of those that still have a manifest."""
    manifests = (read_manifest(prefix) for prefix in prefixes)
    return [manifest.tokenizer_hash for manifest in manifests if manifest is not None]
