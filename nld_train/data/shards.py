"""Encodes the shards of a source. A finished shard is a file, so a run can be continued."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nld_train.data.chat.encoder import ChatEncoder, ChatSpec, EncodedConversation
from nld_train.data.pictures.store import PictureWriter
from nld_train.data.readers import Document, documents
from nld_train.data.sources import Piece, SourceSettings
from nld_train.data.split import is_held_out
from nld_train.data.tokenizer import Encoder, EncoderSpec
from nld_train.data.workers import run_jobs
from nld_train.progress import Advance

# Progress is reported after each group: a second's work at most, for the slowest tokenizers.
_GROUP_CHARACTERS = 1 << 20
# Pictures are in memory until their group is encoded. As many of their bytes count as a character.
_PICTURE_BYTES_PER_CHARACTER = 64
# Whether the documents of a set are held out.
_SIDES = {"train": False, "validation": True}


@dataclass(frozen=True)
class ShardJob:
    """Settings of all shards of a run.

    Attributes:
        settings: how sources are read.
        spec: the tokenizer.
        validation: fraction of documents that is held out, 0 for none.
        folder: of the finished shards.
        chat: how conversations are encoded; None for texts.
    """

    settings: SourceSettings
    spec: EncoderSpec
    validation: float
    folder: Path
    chat: ChatSpec | None = None

    def path(self, number: int) -> Path:
        """The finished shard's file."""
        return self.folder / f"shard-{number:08d}.npz"

    @property
    def has_pictures(self) -> bool:
        """Whether conversations may have pictures."""
        return self.chat is not None and self.chat.images is not None


def pictures_of(shard: Path, name: str) -> Path:
    """The file of the pictures of `train` or `validation` in a shard."""
    return shard.with_suffix(f".{name}.pictures")


def encode_shards(job: ShardJob, shards: Sequence[list[Piece]], workers: int, advance: Advance) -> None:
    """Encodes the shards that are not finished yet.

    Args:
        job: settings.
        shards: pieces of each shard.
        workers: processes.
        advance: is called with the input that was encoded, in the unit of `Piece.size`.

    Raises:
        UserError: a document cannot be read or encoded, or a worker process died. Finished shards stay.
    """
    finished = [job.path(number).exists() for number in range(len(shards))]
    advance(sum(piece.size for done, pieces in zip(finished, shards, strict=True) if done for piece in pieces))
    missing = [(number, shards[number]) for number, done in enumerate(finished) if not done]
    for _ in run_jobs(partial(_ShardWriter, job), missing, workers, advance):
        pass


class _ShardWriter:
    """Encodes a shard into one file of arrays, written under another name first.

    For each side they are `tokens` of all documents and `lengths`; of conversations also `answers` and `turns`, bool
    `[tokens]`, and the numbers of rows in each group that are `left_out` for having no answer, and that are `bad`;
    where these may have pictures, `written` and `occurrences` of the pictures in a file beside it, see
    `pictures.store.ShardPictures`.
    """

    def __init__(self, job: ShardJob) -> None:
        self._job = job
        self._arrays = _TextArrays(job.spec) if job.chat is None else _ChatArrays(job.chat)

    def __call__(self, shard: tuple[int, list[Piece]], advance: Advance) -> None:
        number, pieces = shard
        if not self._job.has_pictures:
            self._save(number, self._encoded(pieces, advance, {}))
            return
        with ExitStack() as stack:
            sides = {name: stack.enter_context(_SidePictures(self._job.path(number), name)) for name in _SIDES}
            arrays = self._encoded(pieces, advance, sides)
            for name, side in sides.items():
                arrays |= {f"{name}_{kind}": array for kind, array in side.finished().items()}
            self._save(number, arrays)

    def _encoded(
        self, pieces: Sequence[Piece], advance: Advance, sides: Mapping[str, _SidePictures]
    ) -> dict[str, NDArray[Any]]:
        parts: dict[str, list[NDArray[Any]]] = {}
        for group, read in _groups(pieces, self._job.settings):
            for name, held_out in _SIDES.items():
                side = [each for each in group if is_held_out(each, self._job.validation) == held_out]
                for kind, array in self._arrays(side, sides.get(name)).items():
                    parts.setdefault(f"{name}_{kind}", []).append(array)
            advance(read)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _save(self, number: int, arrays: dict[str, NDArray[Any]]) -> None:
        path = self._job.path(number)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class _SidePictures:
    """The pictures of one side of a shard: their bytes in a file, and where they stand."""

    def __init__(self, shard: Path, name: str) -> None:
        self._path = pictures_of(shard, name)
        self._temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        self._stream = open(self._temporary, "wb")  # noqa: SIM115
        self._writer = PictureWriter(self._stream)
        self._occurrences: list[tuple[int, int]] = []
        self._tokens = 0

    def __enter__(self) -> _SidePictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, documents: Iterable[EncodedConversation]) -> None:
        """Writes the pictures of the next conversations."""
        for document in documents:
            for picture, start in zip(document.pictures, document.picture_starts.tolist(), strict=True):
                self._occurrences.append((self._tokens + start, self._writer.add(picture)))
            self._tokens += len(document.tokens)

    def finished(self) -> dict[str, NDArray[Any]]:
        """Gives the file its name; returns the arrays that describe it."""
        self._stream.close()
        os.replace(self._temporary, self._path)
        occurrences = np.array(self._occurrences, np.int64).reshape(-1, 2).T
        return {"written": self._writer.written(), "occurrences": occurrences}


class _TextArrays:
    """Encodes texts."""

    def __init__(self, spec: EncoderSpec) -> None:
        self._encoder = Encoder(spec)

    def __call__(self, texts: Sequence[Document], pictures: _SidePictures | None = None) -> dict[str, NDArray[Any]]:
        return _joined(self._encoder.encode([text.text for text in texts]), self._encoder.spec)


class _ChatArrays:
    """Encodes conversations."""

    def __init__(self, spec: ChatSpec) -> None:
        self._spec, self._encoder = spec, ChatEncoder(spec)

    def __call__(self, rows: Sequence[Document], pictures: _SidePictures | None = None) -> dict[str, NDArray[Any]]:
        conversations = [row.conversation for row in rows if row.conversation is not None]
        found = self._encoder.encode(conversations)
        documents = [document for row in found for document in row or ()]
        if pictures is not None:
            pictures.add(documents)
        bad = len(rows) - len(conversations) + sum(row is None for row in found)
        return _joined([document.tokens for document in documents], self._spec.encoder) | {
            "answers": np.concatenate([np.empty(0, dtype=bool), *(document.answers for document in documents)]),
            "turns": np.concatenate([np.empty(0, dtype=bool), *(document.turns for document in documents)]),
            "left_out": np.array([sum(row == [] for row in found)]),
            "bad": np.array([bad]),
        }


def _joined(ids: Sequence[NDArray[Any]], spec: EncoderSpec) -> dict[str, NDArray[Any]]:
    return {
        "tokens": np.concatenate([np.empty(0, spec.dtype), *ids]),
        "lengths": np.array([len(each) for each in ids], dtype=np.int64),
    }


def _groups(pieces: Sequence[Piece], settings: SourceSettings) -> Iterator[tuple[list[Document], int]]:
    """Documents in groups of about a million characters, with the input that was read for each group."""
    group: list[Document] = []
    characters = amount = 0
    for piece in pieces:
        counted = 0
        for document in documents(piece, settings):
            group.append(document)
            characters += len(document.text) + _picture_bytes(document) // _PICTURE_BYTES_PER_CHARACTER
            if characters >= _GROUP_CHARACTERS:
                yield group, amount + document.read - counted
                group, characters, amount, counted = [], 0, 0, document.read
        amount += piece.size - counted
    yield group, amount


def _picture_bytes(document: Document) -> int:
    return 0 if document.conversation is None else sum(len(each.data) for each in document.conversation.pictures)


def shard_size(path: Path, name: str) -> tuple[int, int]:
    """Documents and tokens of `train` or `validation` in a finished shard, without reading them."""
    with zipfile.ZipFile(path) as members:
        number, tokens = (_length(members, f"{name}_{kind}.npy") for kind in ("lengths", "tokens"))
    return number, tokens


def _length(members: zipfile.ZipFile, name: str) -> int:
    with members.open(name) as member:
        assert npy.read_magic(member) == (1, 0)
        shape, _, _ = npy.read_array_header_1_0(member)
    return int(shape[0])
