"""Where the documents of a prepared set begin, read from its `.idx` without Megatron, whose import takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from nld_train.data.token_index import check_files


class DocumentIndex(Sequence[int]):
    """The first token of each document in the stream of a set; grows with the document.

    Args:
        prefix: path of the set without suffix.

    Raises:
        UserError: a file is missing, truncated, or not Megatron's.
    """

    def __init__(self, prefix: str) -> None:
        header = check_files(prefix)
        count = header.sequences
        self._itemsize = np.dtype(header.dtype).itemsize
        # Mapped, not read: a set has up to billions of documents. The arrays are not aligned in the file.
        self._pointers = np.memmap(f"{prefix}.idx", dtype="<i8", mode="r", offset=header.pointer_at(0), shape=(count,))
        self._first_sequences = np.memmap(
            f"{prefix}.idx", dtype="<i8", mode="r", offset=header.border_at(0), shape=(header.documents,)
        )
        last = np.memmap(f"{prefix}.idx", dtype="<i4", mode="r", offset=header.length_at(0), shape=(count,))[-1]
        self.tokens = int(self._pointers[-1]) // self._itemsize + int(last)

    def __len__(self) -> int:
        return len(self._first_sequences)

    @overload
    def __getitem__(self, document: int) -> int: ...
    @overload
    def __getitem__(self, document: slice) -> list[int]: ...
    def __getitem__(self, document: int | slice) -> int | list[int]:
        if isinstance(document, slice):
            return [self[each] for each in range(len(self))[document]]
        sequence = int(self._first_sequences[document])
        if sequence >= len(self._pointers):  # an empty document at the very end
            return self.tokens
        return int(self._pointers[sequence]) // self._itemsize
