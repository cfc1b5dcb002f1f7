"""The manifest of a prepared token set (`NAME.manifest.json`), and the check of a set against a model."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nld_train.data.answer_bits import check_answer_bits
from nld_train.data.packed import quick_fingerprint, set_files
from nld_train.data.token_index import check_files
from nld_train.data.tokenizer import tokenizer_hash
from nld_train.errors import UserError
from nld_train.outside_json import as_record, read_object
from nld_train.progress import Advance

FORMAT_VERSION = 1
_BLOCK = 4 << 20


@dataclass(frozen=True)
class ChatManifest:
    """What a set of conversations has beside a set of texts.

    Attributes:
        template_hash: sha256 of the text of the chat template, which is in `PREFIX.chat_template.jinja`.
        answers: which assistant turns are answers: `all`, `last`, or `each` (a document for each answer).
        conversations: documents of the set.
        answer_tokens: tokens of all answers.
        longest: tokens of the longest conversation.
        answer_count: number of answers.
        end_of_turn: id with which all answers end, or null where they end differently.
        left_out: rows without an answer that is learned, which are not in the set.
        bad_rows: rows that are no conversation or cannot be encoded, which are not in the set.
    """

    template_hash: str
    answers: str
    conversations: int
    answer_tokens: int
    longest: int
    answer_count: int = 0
    end_of_turn: int | None = None
    left_out: int = 0
    bad_rows: int = 0


@dataclass(frozen=True)
class PictureManifest:
    """What a set with pictures has beside a set of conversations.

    Attributes:
        pictures: different ones.
        occurrences: how often they stand in the conversations.
        bytes: of the encoded pictures.
        processor: the content of a `processor_config.json`, by which they become the tower's input.
        image_token_id: the token `[IMG]`.
        image_break_token_id: the token `[IMG_BREAK]`.
        image_end_token_id: the token `[IMG_END]`.
    """

    pictures: int
    occurrences: int
    bytes: int
    processor: dict[str, Any]
    image_token_id: int
    image_break_token_id: int
    image_end_token_id: int


@dataclass(frozen=True)
class Manifest:
    """Origin and content of a prepared set.

    Attributes:
        format_version: version of this record.
        sources: files, folders or names that were read.
        arguments: how they were read and encoded.
        request: hash of everything that determines the content; equal requests need not be prepared again.
        tokenizer: the tokenizer's directory, as a path relative to the manifest or absolute.
        tokenizer_hash: `nld_train.data.tokenizer.tokenizer_hash` of that directory.
        vocabulary_size: largest id of the tokenizer + 1.
        end_of_document: id after each document, or null.
        documents: number of documents.
        tokens: number of tokens, those that begin and end documents included.
        largest_id: largest id that occurs.
        dtype: numpy type of the tokens in the `.bin`.
        fingerprint: sha256 of the sha256 digests of `.bin` and `.idx`, and of the bits of conversations: every byte.
        quick_fingerprint: `nld_train.data.packed.quick_fingerprint`, which is checked at each start.
        versions: of the packages that made the set.
        beginning_of_document: ids before each document; sets of earlier versions have none.
        chat: of a set of conversations; null for texts.
        pictures: of conversations that may have pictures; null for others.
    """

    format_version: int
    sources: list[str]
    arguments: dict[str, Any]
    request: str
    tokenizer: str
    tokenizer_hash: str
    vocabulary_size: int
    end_of_document: int | None
    documents: int
    tokens: int
    largest_id: int
    dtype: str
    fingerprint: str
    quick_fingerprint: str
    versions: dict[str, str]
    beginning_of_document: list[int] = field(default_factory=list)
    chat: ChatManifest | None = None
    pictures: PictureManifest | None = None

    def tokenizer_directory(self, prefix: str) -> str:
        """Directory of the tokenizer of the set with this prefix."""
        return os.path.join(os.path.dirname(prefix), self.tokenizer)

    def summary(self) -> str:
        """Its size in a line."""
        size = f"{self.documents:,} documents, {self.tokens:,} tokens, vocabulary {self.vocabulary_size:,}"
        if self.chat is None:
            return size
        answers, left_out = self.chat.answer_count, self.chat.left_out
        return (
            f"{self.documents:,} conversations of at most {self.chat.longest:,} tokens, {self.tokens:,} tokens, "
            f"{answers:,} answers of {self.chat.answer_tokens / max(answers, 1):,.1f} tokens in the mean, "
            f"vocabulary {self.vocabulary_size:,}"
            + (f"; {left_out:,} rows without an answer that is learned are left out" if left_out else "")
            + (f"; {self.chat.bad_rows:,} bad rows are left out" if self.chat.bad_rows else "")
            + ("" if self.pictures is None else f"; {self.pictures.pictures:,} pictures, {self.pictures.bytes:,} bytes")
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the record as JSON."""
        record = asdict(self)
        if self.pictures is None:  # so that a set without them is the same as of earlier versions
            del record["pictures"]
        Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_manifest(prefix: str) -> Manifest | None:
    """The manifest of a set, or None for a set that Megatron's own tools made.

    Raises:
        UserError: the manifest is damaged, or of a later version.
    """
    path = f"{prefix}.manifest.json"
    if not os.path.exists(path):
        return None
    try:
        manifest = as_record(Manifest, read_object(Path(path)), path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path} is damaged ({reason}): prepare the set again, or remove the file") from error
    if manifest.format_version != FORMAT_VERSION:
        raise UserError(f"{path} has version {manifest.format_version}, this code reads {FORMAT_VERSION}")
    return manifest


def is_chat_set(prefix: str) -> bool:
    """Whether a set consists of conversations; those that Megatron's own tools made never do.

    Raises:
        UserError: as `read_manifest`.
    """
    manifest = read_manifest(prefix)
    return manifest is not None and manifest.chat is not None


def check_against_model(prefix: str, vocab_size: int, mask_token_id: int, tokenizer_path: str | None) -> None:
    """Refuses a set that a model cannot be trained on, before anything heavy starts.

    A set without a manifest passes when its files are complete; its tokens are checked while they are read.

    Args:
        prefix: path of the set without `.bin` and `.idx`.
        vocab_size: ids of the model.
        mask_token_id: the model's mask token.
        tokenizer_path: directory of the tokenizer that goes with the model, or None where none is named.

    Raises:
        UserError: files missing, truncated or changed since they were prepared; another tokenizer; a vocabulary larger
            than the model's; the mask token in the data.
    """
    check_files(prefix)
    manifest = read_manifest(prefix)
    if manifest is None:
        return
    if manifest.chat is not None:
        check_answer_bits(prefix, manifest.tokens)
    if manifest.quick_fingerprint != quick_fingerprint(prefix):
        raise UserError(
            f"{prefix}.bin/.idx are not the files that {prefix}.manifest.json describes: prepare the set again"
        )
    if tokenizer_path is not None:
        require_tokenizer(prefix, manifest, tokenizer_path, "data.tokenizer")
    if manifest.vocabulary_size > vocab_size:
        raise UserError(
            f"the vocabulary of {prefix} has {manifest.vocabulary_size} ids and the model {vocab_size}: "
            f"model.vocab_size must be at least {manifest.vocabulary_size}"
        )
    if occurrences := occurrences_of(prefix, mask_token_id):
        raise UserError(
            f"the mask token {mask_token_id} occurs {occurrences} times in {prefix}.bin: model.mask_token_id must be "
            "an id that text never becomes"
        )


def require_tokenizer(prefix: str, manifest: Manifest, directory: str, key: str) -> None:
    """Refuses another tokenizer than the one that prepared a set.

    Args:
        prefix: of the set.
        manifest: of the set.
        directory: of the tokenizer.
        key: the key or option that can name another one, for the message.

    Raises:
        UserError: it is another tokenizer, or cannot be read.
    """
    if (found := tokenizer_hash(directory)) != manifest.tokenizer_hash:
        raise UserError(
            f"{prefix} was prepared with another tokenizer (hash {manifest.tokenizer_hash[:12]}) than {directory} "
            f"(hash {found[:12]}): prepare the data with it, or name the right one in {key}"
        )


def occurrences_of(prefix: str, token: int) -> int:
    """How often a token occurs in a prepared set.

    Raises:
        UserError: the file of counts cannot be read.
    """
    path = f"{prefix}.counts.npy"
    try:
        counts = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the set again") from error
    return int(counts[token]) if 0 <= token < len(counts) else 0


def full_fingerprint(prefix: str, advance: Advance = lambda count: None) -> str:
    """Hash of every byte of a set's files (`set_files`); `advance` is called with the number of bytes read."""
    digest = hashlib.sha256()
    for suffix in set_files(prefix):
        part = hashlib.sha256()
        with open(prefix + suffix, "rb") as stream:
            while block := stream.read(_BLOCK):
                part.update(block)
                advance(len(block))
        digest.update(part.digest())
    return digest.hexdigest()
