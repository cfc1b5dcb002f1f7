"""A chat set on disk: Megatron's `.bin/.idx`, a document per conversation, and the bits of its tokens beside it."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nld_train.data.answer_bits import TURNS, AnswerBits
from nld_train.data.document_index import DocumentIndex
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

    def read_tokens(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens `start .. start + count - 1`, int64 `[count]`."""
        return self._tokens[start : start + count].astype(np.int64)

    def span(self, conversation: int) -> tuple[int, int]:
        """First token of a conversation in file order, and its number of tokens."""
        return self._index.span(conversation)

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
