"""Where the documents of a prepared set begin, read from its `.idx` without Megatron, whose import takes seconds."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import overload

import numpy as np

from nld_train.data.token_index import check_files, not_in_order


class DocumentIndex(Sequence[int]):
    """The first token of each document in the stream of a set; grows with the document.

    Args:
        prefix: path of the set without suffix.

    Raises:
        UserError: a file is missing, truncated, or not Megatron's.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix, self._header = prefix, check_files(prefix)
        self._itemsize = np.dtype(self._header.dtype).itemsize
        # Read where it is needed, and not mapped: each look into a mapped file would keep 64 KiB of it in memory.
        self._index = io.FileIO(f"{prefix}.idx")
        self.tokens = os.path.getsize(f"{prefix}.bin") // self._itemsize

    def __len__(self) -> int:
        return self._header.documents

    @overload
    def __getitem__(self, document: int) -> int: ...
    @overload
    def __getitem__(self, document: slice) -> list[int]: ...
    def __getitem__(self, document: int | slice) -> int | list[int]:
        if isinstance(document, slice):
            return [self[each] for each in range(len(self))[document]]
        sequence = self._integer(self._header.border_at(range(len(self))[document]))
        if sequence >= self._header.sequences:  # an empty document at the very end
            return self.tokens
        return self._integer(self._header.pointer_at(sequence)) // self._itemsize

    def span(self, document: int) -> tuple[int, int]:
        """First token of a document, and its number of tokens.

        Raises:
            UserError: the documents are not in order.
        """
        start = self[document]
        end = self[document + 1] if document + 1 < len(self) else self.tokens
        if not 0 <= start <= end <= self.tokens:
            raise not_in_order(self._prefix)
        return start, end - start

    def _integer(self, offset: int) -> int:
        return int.from_bytes(os.pread(self._index.fileno(), 8, offset), "little", signed=True)
