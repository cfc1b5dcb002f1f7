"""Refuses tokenizers that make very long texts of short ones: a file of a kilobyte can ask for all memory."""

from __future__ import annotations

import base64
import binascii
import math
from pathlib import Path
from typing import Any

from nld_train.errors import UserError
from nld_train.outside_json import read_object

# Bounds on characters per character, by the pessimistic count made here: ALBERT's normalizer, with two Unicode
# normalizations in sequence, has 1,944, and most have less than 3.
MAX_GROWTH = 2_000
# Special tokens that a template puts around a text, and characters of a single token.
MAX_ADDED_TOKENS = 1_000
MAX_TOKEN_CHARACTERS = 10_000
# Tokens that a class of tokenizer adds to its vocabulary by itself (T5 has 100).
MAX_EXTRA_IDS = 10_000
# Characters of the longest compatibility decomposition (U+FDFA).
_UNICODE = 18
_FACTORS = {
    "NFKC": _UNICODE,
    "NFKD": _UNICODE,
    "NFC": 4,
    "NFD": 4,
    "BertNormalizer": 12,
    "Lowercase": 3,
    "ByteLevel": 4,
}


def refuse_growth(directory: Path) -> None:
    """Reads a tokenizer's `tokenizer.json` and `tokenizer_config.json`, where it has them.

    Raises:
        UserError: one of them is not JSON, or what its steps could make of a text is beyond the bounds above.
    """
    path = directory / "tokenizer.json"
    if path.is_file():
        definition = read_object(path)
        for key, parts in (("normalizer", "normalizers"), ("decoder", "decoders")):
            _refuse(path, f"its {key} can make", _growth(definition.get(key), parts), MAX_GROWTH, "characters of one")
        _refuse(path, "it puts", _added(definition.get("post_processor")), MAX_ADDED_TOKENS, "tokens around a text")
        _refuse(path, "it has a token of", _longest_token(definition), MAX_TOKEN_CHARACTERS, "characters")
    settings = directory / "tokenizer_config.json"
    if settings.is_file():
        extra = read_object(settings).get("extra_ids")
        _refuse(settings, "extra_ids adds", extra if isinstance(extra, int) else 0, MAX_EXTRA_IDS, "tokens")


def _refuse(path: Path, what: str, found: float, most: int, unit: str) -> None:
    if found > most:
        shown = f"{found:,.0f}" if found < 1e15 else "more than 10^15"
        raise UserError(f"{path}: {what} {shown} {unit}, and at most {most:,} are accepted")


def _growth(step: Any, parts: str) -> float:
    """Upper bound of the characters that a normalizer or decoder makes of one character."""
    if not isinstance(step, dict):
        return 1
    kind = step.get("type")
    if kind == "Sequence":
        # In floating point, which becomes infinite and does not overflow.
        return math.prod((float(_growth(each, parts)) for each in _list(step.get(parts))), start=1.0)
    if kind == "Prepend":
        return 1 + _length(step.get("prepend"))
    if kind == "Replace":
        return _growth_of_replace(step)
    if kind == "Precompiled":
        return _longest_replacement(step.get("precompiled_charsmap"))
    return _FACTORS.get(str(kind), 1)


def _growth_of_replace(step: dict[str, Any]) -> float:
    pattern, content = step.get("pattern"), _length(step.get("content"))
    matched = _length(pattern.get("String")) if isinstance(pattern, dict) else 0
    # A regular expression may match one character, or none, at each position.
    return max(1.0, content / matched) if matched else 1 + content


def _longest_replacement(charsmap: Any) -> float:
    """Characters of the longest string of SentencePiece's table: a trie of a given size, then strings that end in 0."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return 1  # the library refuses it
    strings = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    return max([1, *(len(string.decode(errors="replace")) for string in strings)])


def _added(processor: Any) -> int:
    """The largest number of special tokens that a post-processor adds to a text or a pair of texts."""
    if not isinstance(processor, dict):
        return 0
    if isinstance(processors := processor.get("processors"), list):
        return sum(map(_added, processors))
    known = processor.get("special_tokens")
    sizes = {name: _length(token.get("ids")) for name, token in known.items()} if isinstance(known, dict) else {}
    return max(_template_tokens(processor.get(name), sizes) for name in ("single", "pair"))


def _template_tokens(template: Any, sizes: dict[str, int]) -> int:
    tokens = [piece.get("SpecialToken") for piece in _list(template) if isinstance(piece, dict)]
    return sum(sizes.get(str(token.get("id")), 0) for token in tokens if isinstance(token, dict))


def _longest_token(definition: dict[str, Any]) -> int:
    model, added = definition.get("model"), definition.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    # A mapping to ids, or in Unigram a list of pairs of token and score.
    entries = vocabulary if isinstance(vocabulary, dict | list) else ()
    names = [entry[0] if isinstance(entry, list) and entry else entry for entry in entries]
    names += [token.get("content") for token in _list(added) if isinstance(token, dict)]
    return max(map(_length, names), default=0)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list) else 0
