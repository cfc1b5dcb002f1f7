"""Samples of one length out of a prepared token set: slices of Megatron's `.bin`, with borders from its `.idx`.

The documents of a set, in file order, form one long stream. Sample i of length L is the slice `[i*L, i*L + L + 1)`:
L + 1 tokens, because every position needs its next token as a target; neighbours share the border token, and a tail
that is too short is dropped. Nothing is built or stored per sample, so a set of 1e12 tokens opens at once.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from bisect import bisect_left, bisect_right
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nld_train.data.answer_bits import ANSWERS, TURNS
from nld_train.data.pictures.store import PICTURE_FILES, StoredPicture
from nld_train.data.token_index import check_files
from nld_train.errors import UserError

_PIECES, _PIECE_BYTES = 64, 4096


class PackedTokens(NamedTuple):
    """The tokens of one sample.

    Attributes:
        tokens: int64 `[L+1]`.
        documents: int64 `[L+1]`, ordinals of the documents, counted from 0 in the sample; equal ones are adjacent.
        answers: bool `[L+1]`, the tokens of answers in conversations; None for text.
        pictures: whose image tokens are among them, in order.
    """

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]
    answers: NDArray[np.bool_] | None = None
    pictures: tuple[StoredPicture, ...] = ()


class SampleSet(Protocol):
    """A token set as samples of one length: `PackedSamples` of text, `data.conversations.PackedConversations`."""

    prefix: str
    sequence_length: int
    fingerprint: str

    def inputs_of(self, packed: PackedTokens) -> list[NDArray[np.float32]]:
        """The vision tower's input of the pictures of a sample, float32 `[3, height, width]` each."""

    def __len__(self) -> int:
        """Samples in one epoch."""

    def read(self, index: int) -> PackedTokens:
        """The sample at an index, `0 <= index < len(self)`."""


class PackedSamples:
    """A prepared set read as samples of `sequence_length` + 1 tokens.

    Args:
        prefix: path of the set without `.bin` and `.idx`.
        sequence_length: L, supervised positions of a sample.

    Raises:
        UserError: a file is missing, truncated, not Megatron's, or the set is shorter than one sample.
    """

    def __init__(self, prefix: str, sequence_length: int) -> None:
        self.prefix = prefix
        self.sequence_length = sequence_length
        self._open()

    def _open(self) -> None:
        header = check_files(self.prefix)
        self._indexed = indexed_dataset_module().IndexedDataset(self.prefix, mmap=True)
        self._itemsize = np.dtype(header.dtype).itemsize
        self.documents: int = header.documents
        self.tokens: int = os.path.getsize(f"{self.prefix}.bin") // self._itemsize
        self.fingerprint: str = quick_fingerprint(self.prefix)
        if len(self) < 1:
            raise UserError(
                f"{self.prefix}.bin holds {self.tokens} tokens, fewer than one sample of batch.sequence_length + 1 = "
                f"{self.sequence_length + 1}: prepare more text or shorten batch.sequence_length"
            )

    def inputs_of(self, packed: PackedTokens) -> list[NDArray[np.float32]]:
        """Text has no pictures."""
        return []

    def __getstate__(self) -> tuple[str, int]:
        return self.prefix, self.sequence_length

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        """Samples in one epoch."""
        return max(0, (self.tokens - 1) // self.sequence_length)

    def read(self, index: int) -> PackedTokens:
        """Reads one sample.

        Args:
            index: which sample, `0 <= index < len(self)`, in file order.

        Raises:
            IndexError: no such sample.
            UserError: the `.idx` contradicts itself.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.prefix}")
        start = index * self.sequence_length
        # Megatron's reader reads across the borders of its sequences, so this is a slice of the whole stream.
        tokens = self._indexed.get(0, offset=start, length=self.sequence_length + 1)
        return PackedTokens(tokens.astype(np.int64), self._document_ordinals(start))

    def _document_ordinals(self, start: int) -> NDArray[np.int64]:
        """Ordinals int64 `[L+1]` of the documents in the stream slice that starts at token `start`."""
        length = self.sequence_length + 1
        # bisect instead of np.searchsorted: the pointers lie unaligned in the file, so numpy would copy all of them.
        documents = range(self.documents)
        first = bisect_right(documents, start, key=self._document_start)
        last = bisect_left(documents, start + length, lo=first, key=self._document_start)
        starts = np.array([self._document_start(document) for document in range(first, last)], dtype=np.int64) - start
        if len(starts) and (starts.min() <= 0 or starts.max() >= length):
            raise UserError(f"{self.prefix}.idx is damaged: its sequence pointers do not grow; prepare the set again")
        ordinals = np.zeros(length, dtype=np.int64)
        ordinals[starts] = 1
        return np.cumsum(ordinals)

    def _document_start(self, document: int) -> int:
        """First token of a document in the stream. Megatron allows several sequences in a document."""
        index = self._indexed.index
        sequence = index.document_indices[document]
        if sequence >= index.sequence_count:  # an empty document at the very end
            return self.tokens
        return int(index.sequence_pointers[sequence]) // self._itemsize


def indexed_dataset_module() -> ModuleType:
    """Megatron's `indexed_dataset`, whose import takes seconds and is not needed to check sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each accelerator package that is not installed
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


def set_files(prefix: str) -> list[str]:
    """Suffixes of the files that are the content of a set: a chat set has more than two."""
    more = (ANSWERS, TURNS, *PICTURE_FILES)
    return [".bin", ".idx", *(suffix for suffix in more if os.path.exists(prefix + suffix))]


def quick_fingerprint(prefix: str) -> str:
    """Identity of a set in constant time: a hash of both sizes and of 64 pieces of 4 KiB spread over each file.

    It keys the order of samples and shows on resume whether the data are the same. The manifest's fingerprint covers
    every byte, which takes minutes for large sets.
    """
    digest = hashlib.sha256()
    for suffix in set_files(prefix):
        size = os.path.getsize(prefix + suffix)
        digest.update(size.to_bytes(8, "little"))
        with open(prefix + suffix, "rb") as stream:
            for piece in range(_PIECES):
                stream.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()
