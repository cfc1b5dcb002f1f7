"""Tokenizers for prepared data: a Hugging Face directory, plain bytes, or a small byte-level BPE trained on the data.

Text never becomes a special token here. A document that spells "<mask>" or "</s>" stays ordinary text, whatever the
tokenizer: otherwise the data could contain the mask token, and a document its own end-of-document token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from nld_train.data.text_ids import beginning_of_text
from nld_train.data.tokenizer_files import CHAT_TEMPLATE, VOCABULARY_FILES
from nld_train.data.tokenizer_growth import refuse_growth
from nld_train.data.word_encoder import byte_characters, word_encoder
from nld_train.errors import UserError, first_line
from nld_train.files import write_atomically
from nld_train.outside_json import parse_object, read_bytes

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<mask>")
_BATCH_CHARACTERS = 1 << 20
# Parts that determine the ids of plain text; padding, truncation, templates and decoding do not.
_HASHED_PARTS = ("model", "normalizer", "pre_tokenizer", "added_tokens")


@dataclass(frozen=True)
class EncoderSpec:
    """Settings from which a worker process makes its encoder.

    Attributes:
        definition: the tokenizer as JSON (the content of a `tokenizer.json`).
        end_of_document: id put after each document, or None.
        forbidden: special ids that text must never become.
        vocabulary_size: largest id of the tokenizer + 1.
        beginning_of_document: ids put before each document; see `text_ids`.
    """

    definition: str
    end_of_document: int | None
    forbidden: tuple[int, ...]
    vocabulary_size: int
    beginning_of_document: tuple[int, ...] = ()

    @property
    def dtype(self) -> type[np.integer[Any]]:
        """Smallest token type; the bound is that of Megatron's `DType.optimal_dtype`."""
        return np.uint16 if self.vocabulary_size < 65500 else np.int32


class Encoder:
    """Turns texts into ids with special-token parsing off."""

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec = spec
        self._tokenizer = Tokenizer.from_str(spec.definition)
        self._tokenizer.encode_special_tokens = True  # the library's name for: special strings are plain text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A byte is its own token: 30 times faster without the library's bookkeeping for each token.
        self._plain_bytes = _is_bytes_tokenizer(spec)
        self._forbidden = np.array(spec.forbidden, dtype=np.int64)
        self._words = None if self._plain_bytes else word_encoder(self._tokenizer, spec.dtype, spec.forbidden)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.integer[Any]]]:
        """Ids of each text, `[tokens]`, between those that begin a document and the one that ends it.

        Raises:
            UserError: the tokenizer turns some text into a special token even when its special strings are split.
        """
        well_formed = [_without_lone_surrogates(text) for text in texts]
        encoded = [ids for batch in _batches(well_formed) for ids in self._encode_batch(batch)]
        begin = np.array(self.spec.beginning_of_document, dtype=self.spec.dtype)
        ends = () if self.spec.end_of_document is None else (self.spec.end_of_document,)
        end = np.array(ends, dtype=self.spec.dtype)
        return [np.concatenate([begin, ids, end]) for ids in encoded] if len(begin) or len(end) else encoded

    def _encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.integer[Any]]]:
        if self._plain_bytes:
            first = len(SPECIAL_TOKENS)
            return [np.frombuffer(text.encode(), dtype=np.uint8).astype(self.spec.dtype) + first for text in texts]
        if self._words is None:
            return self._by_library(texts)
        found = [self._words.encode(text) for text in texts]
        rest = iter(self._by_library([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        return [next(rest) if ids is None else ids for ids in found]

    def _by_library(self, texts: Sequence[str]) -> list[NDArray[np.integer[Any]]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._checked(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]

    def _checked(self, text: str, ids: list[int]) -> NDArray[np.integer[Any]]:
        array = np.array(ids, dtype=self.spec.dtype)
        if not np.isin(array, self._forbidden).any():
            return array
        # Some vocabularies have special strings as ordinary entries: split the strings, so that none can match.
        cuts = [0, *(found.start() + 1 for found in self._special_strings.finditer(text)), len(text)]
        pieces = [text[begin:end] for begin, end in pairwise(cuts)]
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        array = np.array([token for encoding in encodings for token in encoding.ids], dtype=self.spec.dtype)
        if np.isin(array, self._forbidden).any():
            raise UserError(f"the tokenizer turns plain text into a special token: {text[:60]!r}")
        return array

    @cached_property
    def _special_strings(self) -> re.Pattern[str]:
        strings = [self._tokenizer.id_to_token(token) or "" for token in self.spec.forbidden]
        return re.compile(
            "|".join(re.escape(string) for string in sorted(filter(None, strings), key=len, reverse=True))
        )


def _is_bytes_tokenizer(spec: EncoderSpec) -> bool:
    # Its size first: the hash of a large vocabulary takes a second, in each worker.
    tokenizer = bytes_tokenizer()
    same_size = spec.vocabulary_size == tokenizer.get_vocab_size()
    return same_size and definition_hash(spec.definition) == definition_hash(tokenizer.to_str())


def _batches(texts: Sequence[str]) -> Iterable[list[str]]:
    """Batches of about a million characters: the library allocates some 100 bytes for each token of a batch."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _without_lone_surrogates(text: str) -> str:
    """JSON may contain half a surrogate pair, which is not a character: such halves become `?`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def bytes_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges: 0 `<pad>`, 1 `<s>`, 2 `</s>`, 3 `<mask>`, then the 256 bytes in order."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *byte_characters()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Adds special tokens to a tokenizer of this module, with the ids after its own."""
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Trains a byte-level BPE with the same four special tokens, ids 0 to 3.

    Raises:
        UserError: the vocabulary is too small for the special tokens and the 256 bytes.
    """
    if vocabulary_size < 256 + len(SPECIAL_TOKENS):
        raise UserError(f"train-bpe:{vocabulary_size} is too small: bytes and special tokens need 260 ids")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without_lone_surrogates(text) for text in texts), trainer=trainer)
    return tokenizer


def is_saved(tokenizer: Tokenizer, directory: str, overwrite: bool) -> bool:
    """Whether this tokenizer was saved in a directory before.

    Raises:
        UserError: the directory has another tokenizer, and `overwrite` is not set; or something that is no tokenizer.
    """
    if not os.path.exists(directory):
        return False
    same = tokenizer_hash(directory) == definition_hash(tokenizer.to_str())
    if not same and not overwrite:
        raise UserError(f"{directory} holds another tokenizer: give another --out, or --overwrite")
    return same


def save_tokenizer(
    tokenizer: Tokenizer, directory: str, overwrite: bool = False, chat_template: str | None = None
) -> None:
    """Saves a tokenizer of this module as a Hugging Face directory, atomically; keeps one that is equal.

    Args:
        tokenizer: of this module.
        directory: of the result.
        overwrite: replaces another tokenizer.
        chat_template: its chat template; None for none, which leaves that of an equal tokenizer as it is.

    Raises:
        UserError: as `is_saved`.
    """
    if is_saved(tokenizer, directory, overwrite):
        if chat_template is not None:
            write_atomically(Path(directory, CHAT_TEMPLATE), chat_template)
        return
    from transformers import PreTrainedTokenizerFast

    pad, begin, end, mask = SPECIAL_TOKENS
    named = {"pad_token": pad, "bos_token": begin, "eos_token": end, "mask_token": mask}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    wrapped.chat_template = chat_template
    parent = os.path.dirname(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=parent) as temporary:
        made = os.path.join(temporary, "made")
        wrapped.save_pretrained(made)
        if os.path.exists(directory):
            os.replace(directory, os.path.join(temporary, "replaced"))
        os.replace(made, directory)


def own_spec(tokenizer: Tokenizer, append_end: bool) -> EncoderSpec:
    """Encoder of a tokenizer of this module."""
    return EncoderSpec(
        definition=tokenizer.to_str(),
        end_of_document=SPECIAL_TOKENS.index("</s>") if append_end else None,
        forbidden=tuple(
            sorted(index for index, added in tokenizer.get_added_tokens_decoder().items() if added.special)
        ),
        vocabulary_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
    )


def directory_spec(directory: str, append_end: bool, prepend_beginning: bool = True) -> EncoderSpec:
    """Encoder of a Hugging Face tokenizer directory.

    Raises:
        UserError: no tokenizer there, one without a fast implementation, or one without an end-of-sequence token.
    """
    tokenizer = load_tokenizer(directory)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"the tokenizer in {directory} has no tokenizer.json that the tokenizers library can run")
    if append_end and tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {directory} names no eos_token: set one, or give --no-end-of-document")
    added = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    return EncoderSpec(
        definition=backend.to_str(),
        end_of_document=tokenizer.eos_token_id if append_end else None,
        forbidden=tuple(sorted((added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id})),
        vocabulary_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        beginning_of_document=beginning_of_text(tokenizer) if prepend_beginning else (),
    )


def load_tokenizer(directory: str) -> Any:
    """The `transformers` tokenizer of a local directory, which may contain a model as well. No code there is run.

    Raises:
        UserError: there is no tokenizer, or one that needs code of its own or makes very long texts of short ones.
    """
    require_directory(directory)
    from transformers import AutoTokenizer

    refuse_growth(Path(directory))
    try:
        # Without this argument it asks on standard input whether to run the code of an exported model.
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds of exceptions
        raise UserError(f"{directory} is no tokenizer that transformers can load: {first_line(error)}") from error


def require_directory(directory: str) -> None:
    """Refuses a path that is no directory.

    Raises:
        UserError: it is none.
    """
    if not os.path.isdir(directory):
        raise UserError(f"no tokenizer directory {directory}: give a Hugging Face directory, bytes, or train-bpe:VOCAB")


def tokenizer_hash(directory: str) -> str:
    """Identity of a tokenizer directory: equal for copies, whatever their templates. Imports no transformers.

    Raises:
        UserError: no tokenizer there.
    """
    require_directory(directory)
    definition = Path(directory, "tokenizer.json")
    if definition.is_file():
        return definition_hash(read_bytes(definition), str(definition))
    files = [path for name in VOCABULARY_FILES if (path := Path(directory, name)).is_file()]
    if not files:
        raise UserError(f"{directory} holds no tokenizer (no tokenizer.json and no vocabulary file)")
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def definition_hash(definition: str | bytes, where: str = "tokenizer.json") -> str:
    """Hash of those parts of a `tokenizer.json` that determine the ids of plain text.

    Args:
        definition: content of the file.
        where: the file, for messages.

    Raises:
        UserError: it is not a JSON object.
    """
    parsed = parse_object(definition, where)
    parts = {name: parsed.get(name) for name in _HASHED_PARTS}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
