"""Byte-level BPE word by word: ten times as fast as the tokenizers library, with the same ids.

Such a tokenizer first splits a text into words by a regular expression, then turns each word into ids by itself. Most
words of a text have occurred before. Here the `regex` package splits, the library encodes each word once, and a
dictionary has the ids of the words that it has seen.

Both must split alike, and Unicode has several versions. So each character, when it first occurs, is put between others
of every class, and the splits of both are compared: a text with a character of which they disagree, or which the
expression does not match to its end, is encoded by the library. ASCII texts are split by Python's own `re`, which is
faster still, with the classes of the expression written out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nld_train.outside_json import parse_object

# The expression of the pre-tokenizer `ByteLevel` (GPT-2's), which a `tokenizer.json` does not spell out.
_BYTE_LEVEL = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Between these a character shows its classes: letters of both cases, a mark, digits, punctuation, white space, lines.
_NEIGHBOURS = (
    "{0}",
    "a{0}a",
    "A{0}A",
    "a\u0301{0}a",
    "11{0}1",
    "!{0}!",
    "a {0} a",
    "\n{0}\n",
    "a'{0}",
    "{0}'s",
    "  {0}",
)
# The classes of Unicode within ASCII, as they are written inside brackets.
_ASCII_CLASSES = {
    r"\p{L}": "A-Za-z",
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-z",
    r"\p{Lt}": "",
    r"\p{Lm}": "",
    r"\p{Lo}": "",
    r"\p{M}": "",
    r"\p{N}": "0-9",
    r"\s": r" \t-\r",
    r"\S": None,
}
_CLASS_OR_CHARACTER = re.compile(r"\\[pP]\{\w+\}|\\.|.", re.DOTALL)
# Longer words hardly ever occur again.
_LONGEST_WORD = 64
# Then the dictionary starts anew: some 200 bytes a word.
_MOST_WORDS = 1 << 19


def word_encoder(tokenizer: Tokenizer, dtype: type[np.integer[Any]], forbidden: Iterable[int]) -> WordEncoder | None:
    """The encoder of a byte-level BPE; None for another tokenizer.

    Args:
        tokenizer: without truncation and padding, whose special strings are plain text.
        dtype: of the ids.
        forbidden: ids of special tokens.
    """
    pattern = word_pattern(tokenizer)
    if pattern is None:
        return None
    try:
        words = regex.compile(pattern)
    except regex.error:  # the library's expressions have some syntax of their own
        return None
    # Of an expression with groups, `findall` returns the groups.
    return None if words.groups else WordEncoder(tokenizer, words, dtype, forbidden)


def word_pattern(tokenizer: Tokenizer) -> str | None:
    """The expression that splits words, if nothing but it and the merges decides on the ids; else None."""
    definition = parse_object(tokenizer.to_str(), "tokenizer.json")
    model = definition["model"]
    plain = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or definition["normalizer"] is not None or any(model.get(name) for name in plain):
        return None
    # Added tokens that are not special are found in a text before it is split.
    if not all(token["special"] for token in definition["added_tokens"]):
        return None
    before = definition["pre_tokenizer"] or {}
    steps = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    *splits, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not splits:
        return _BYTE_LEVEL if last["use_regex"] else None
    if len(splits) > 1 or last["use_regex"] or splits[0]["type"] != "Split":
        return None
    (split,) = splits
    written = split["pattern"].get("Regex")
    return written if split["behavior"] == "Isolated" and not split["invert"] else None


def ascii_pattern(pattern: str) -> str | None:
    """An expression for `re` that matches in ASCII texts what `pattern` matches; None if it is not known how."""
    found: list[str] = []
    inside = False
    for part in _CLASS_OR_CHARACTER.findall(pattern):
        if (part == "[" and not inside) or (part == "]" and inside):
            inside = not inside
        elif part == r"\S" and not inside:
            part = r"[^ \t-\r]"
        elif part[0] == "\\" and part[1].isalpha() and part not in (r"\r", r"\n", r"\t"):
            written = _ASCII_CLASSES.get(part)
            if written is None or not (inside or written):
                return None
            part = written if inside else f"[{written}]"
        found.append(part)
    try:
        return re.compile("".join(found)).pattern
    except re.error:  # an empty class, or syntax that only `regex` has
        return None


class WordEncoder:
    """Turns texts into ids; see the module.

    Args:
        tokenizer: a byte-level BPE.
        words: expression of a word.
        dtype: of the ids.
        forbidden: ids of special tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, words: regex.Pattern[str], dtype: type[np.integer[Any]], forbidden: Iterable[int]
    ) -> None:
        self._split = tokenizer.pre_tokenizer.pre_tokenize_str
        self._words = words
        in_ascii = ascii_pattern(words.pattern)
        self._ascii_words: Any = words if in_ascii is None else re.compile(in_ascii, re.ASCII)
        self._dtype = dtype
        self._ids = _IdsOfWords(tokenizer, dtype, frozenset(forbidden))
        self._known: set[str] = set()
        self._unlike: set[str] = set()
        in_ascii_alike = all(
            self._agree(probe, self._ascii_words) for probe in _probes(map(chr, range(128))) if probe.isascii()
        )
        self._ascii_is_alike = in_ascii_alike and self._alike("".join(map(chr, range(128))))

    def encode(self, text: str) -> NDArray[np.integer[Any]] | None:
        """The ids of a text, `[tokens]`; None if the library has to encode it."""
        in_ascii = text.isascii()
        if not (self._ascii_is_alike if in_ascii else self._alike(text)):
            return None
        words = (self._ascii_words if in_ascii else self._words).findall(text)
        try:
            encoded = b"".join(map(self._ids.__getitem__, words))
        except _ForbiddenError:
            return None
        # What the expression does not match is no word, but a part of the text.
        return np.frombuffer(encoded, self._dtype) if "".join(words) == text else None

    def _alike(self, text: str) -> bool:
        """Whether both split every character of a text in the same way."""
        found = set(text)
        for character in found - self._known:
            self._known.add(character)
            if not all(self._agree(probe, self._words) for probe in _probes(character)):
                self._unlike.add(character)
        return self._unlike.isdisjoint(found)

    def _agree(self, probe: str, words: Any) -> bool:
        theirs = [span for _, span in self._split(probe)]
        return theirs == [match.span() for match in words.finditer(probe)]


def _probes(characters: Iterable[str]) -> Iterable[str]:
    """Each character between others of every class."""
    return (neighbours.format(character) for character in characters for neighbours in _NEIGHBOURS)


class _ForbiddenError(Exception):
    """A word becomes a special token."""


class _IdsOfWords(dict[str, bytes]):
    """The ids of each word, as the bytes of an array; computed when a word first occurs."""

    def __init__(self, tokenizer: Tokenizer, dtype: type[np.integer[Any]], forbidden: frozenset[int]) -> None:
        super().__init__()
        self._model, self._dtype, self._forbidden = tokenizer.model, dtype, forbidden
        self._characters = dict(enumerate(byte_characters()))

    def __missing__(self, word: str) -> bytes:
        written = word.encode().decode("latin-1").translate(self._characters)
        ids = [token.id for token in self._model.tokenize(written)]
        if not self._forbidden.isdisjoint(ids):
            raise _ForbiddenError
        encoded = np.array(ids, self._dtype).tobytes()
        if len(word) <= _LONGEST_WORD:
            if len(self) >= _MOST_WORDS:
                self.clear()
            self[word] = encoded
        return encoded


def byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte (introduced with GPT-2).

    Printable Latin-1 characters represent themselves, the characters from 256 on the other bytes, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
