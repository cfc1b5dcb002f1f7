"""A chat set on disk: Megatron's `.bin/.idx`, a document per conversation, and the bits of its tokens beside it."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nld_train.data.answer_bits import TURNS, AnswerBits
from nld_train.data.document_index import DocumentIndex
from nld_train.data.manifest import read_manifest
from nld_train.data.pictures.processor import PictureProcessor, processor_of
from nld_train.data.pictures.store import INDEX as PICTURE_INDEX
from nld_train.data.pictures.store import PictureStore, StoredPicture
from nld_train.data.token_index import check_files
from nld_train.errors import UserError


class ChatSet:
    """The files of a chat set, open for reading.

    Args:
        prefix: path of the set without suffix.

    Attributes:
        documents: number of conversations.
        tokens: number of tokens.
        answers: which tokens belong to answers.

    Raises:
        UserError: a file is missing, truncated, or not what it should be.
    """

    def __init__(self, prefix: str) -> None:
        header = check_files(prefix)
        self.prefix = prefix
        self.documents = header.documents
        self.tokens = os.path.getsize(f"{prefix}.bin") // np.dtype(header.dtype).itemsize
        self.answers = AnswerBits(prefix, self.tokens)
        self._tokens = map_file(f"{prefix}.bin", header.dtype)
        self._turns: AnswerBits | None = None
        self._pictures = PictureStore(prefix) if os.path.exists(prefix + PICTURE_INDEX) else None

    def read_tokens(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens `start .. start + count - 1`, int64 `[count]`."""
        return self._tokens[start : start + count].astype(np.int64)

    def span(self, conversation: int) -> tuple[int, int]:
        """First token of a conversation in file order, and its number of tokens."""
        return self._index.span(conversation)

    def pictures(self, start: int, count: int) -> list[StoredPicture]:
        """The pictures whose image tokens are among tokens `start .. start + count - 1`, in order."""
        return [] if self._pictures is None else self._pictures.within(start, count)

    def input_of(self, picture: StoredPicture) -> NDArray[np.float32]:
        """A picture of this set as the vision tower takes it, float32 `[3, height, width]`.

        Raises:
            UserError: it is damaged, or the manifest does not say how it is processed.
        """
        return self._processor.input_of(picture, f"{self.prefix}: picture {picture.number}")

    @cached_property
    def _processor(self) -> PictureProcessor:
        where, manifest = f"{self.prefix}.manifest.json", read_manifest(self.prefix)
        if manifest is None or manifest.pictures is None:
            raise UserError(f"{where} does not say how the set's pictures are processed: prepare the set again")
        return processor_of(manifest.pictures.processor, where)

    @cached_property
    def _index(self) -> DocumentIndex:
        return DocumentIndex(self.prefix)

    def read(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens `start .. start + count - 1`, and which of them belong to answers: both `[count]`."""
        return self.read_tokens(start, count), self.answers.read(start, count)

    def pieces(self, start: int, length: int, most: int) -> list[tuple[int, int]] | None:
        """What stays of a conversation where it may have no more than `most` tokens.

        A longer one loses whole turns from the front. What comes before the first turn of the user, the system prompt,
        stays; after it the conversation goes on with another turn of the user.

        Args:
            start: first token of the conversation.
            length: its tokens.
            most: tokens that may stay.

        Returns:
            First token and number of tokens of each piece; None where no part with an answer is short enough.

        Raises:
            UserError: the set does not say where turns begin.
        """
        if length <= most:
            return [(start, length)]
        if self._turns is None:
            if not os.path.exists(self.prefix + TURNS):
                raise UserError(
                    f"data.long_conversations=shorten: {self.prefix}{TURNS}, which says where turns begin, does not "
                    "exist; prepare the set again, or set leave_out"
                )
            self._turns = AnswerBits(self.prefix, self.tokens, TURNS)
        turns = np.flatnonzero(self._turns.read(start, length))
        fitting = turns[1:][turns[1:] >= length - most + turns[0]] if len(turns) else turns
        if not len(fitting) or not self.answers.read(start + int(fitting[0]), length - int(fitting[0])).any():
            return None
        head, tail = int(turns[0]), int(fitting[0])
        return [(start, head), (start + tail, length - tail)]


def map_file(path: str, dtype: DTypeLike) -> NDArray[Any]:
    """A file in memory as it is read; one without content cannot be mapped."""
    return np.memmap(path, dtype, mode="r") if os.path.getsize(path) else np.empty(0, dtype)
