"""Megatron's `.idx`: its layout, its checks, and its documents read and written piece by piece.

Header, then for N sequences and D documents: N lengths in tokens (int32), N byte offsets in the `.bin` (int64), and
D + 1 borders (int64), the number of the first sequence of each document. Megatron's own reader and builder hold these
as Python lists or whole arrays; here memory does not grow with the number of documents.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nld_train.errors import UserError
from nld_train.progress import Advance

# The header of an `.idx`: magic, version, dtype code, sequences, document borders.
_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_TOKEN_TYPES: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_CHUNK = 1 << 16


@dataclass(frozen=True)
class IndexHeader:
    """The header of an `.idx`: the tokens' type, sequences, and documents. Offsets are bytes of the `.idx`."""

    dtype: type[np.integer[Any]]
    sequences: int
    documents: int

    def length_at(self, sequence: int) -> int:
        """Offset of a sequence's length, int32."""
        return _HEADER.size + 4 * sequence

    def pointer_at(self, sequence: int) -> int:
        """Offset of a sequence's first byte in the `.bin`, int64."""
        return self.length_at(self.sequences) + 8 * sequence

    def border_at(self, document: int) -> int:
        """Offset of the number of a document's first sequence, int64; of the number of sequences for the last one."""
        return self.pointer_at(self.sequences) + 8 * document

    @property
    def size(self) -> int:
        """Bytes of the `.idx`."""
        return self.border_at(self.documents + 1)

    def packed(self) -> bytes:
        """The bytes of the header."""
        code = next(code for code, dtype in _TOKEN_TYPES.items() if dtype is self.dtype)
        return _HEADER.pack(_MAGIC, 1, code, self.sequences, self.documents + 1)


def check_files(prefix: str) -> IndexHeader:
    """Checks that `prefix` names a whole `.bin/.idx` pair, by their sizes and the header of the `.idx`.

    Raises:
        UserError: a file is missing, truncated, or not Megatron's; or the two do not belong together.
    """
    for suffix in (".bin", ".idx"):
        if not os.path.isfile(prefix + suffix):
            raise UserError(f"{prefix}{suffix} does not exist: a token set is NAME.bin and NAME.idx (nld-data prepare)")
    try:
        header, expected = _read_index(f"{prefix}.idx")
        actual = os.path.getsize(f"{prefix}.bin")
    except OSError as error:
        raise UserError(f"{prefix}.bin/.idx cannot be read: {error.strerror}") from error
    if actual != expected:
        what = "is truncated" if actual < expected else "does not belong to its .idx"
        raise UserError(f"{prefix}.bin {what}: it has {actual} bytes, and {prefix}.idx requires {expected}")
    return header


def _read_index(path: str) -> tuple[IndexHeader, int]:
    """Header of an `.idx`, and the bytes that its `.bin` must have."""
    with open(path, "rb") as stream:
        raw = stream.read(_HEADER.size)
        if len(raw) < _HEADER.size or not raw.startswith(_MAGIC):
            raise UserError(f"{path} is not an index of Megatron's indexed datasets")
        _, version, code, sequences, borders = _HEADER.unpack(raw)
        if version != 1 or code not in _TOKEN_TYPES:
            raise UserError(f"{path}: version {version}, dtype code {code} is not a token index of version 1")
        header = IndexHeader(_TOKEN_TYPES[code], sequences, borders - 1)
        if os.path.getsize(path) < header.size:
            raise UserError(f"{path} is truncated: {os.path.getsize(path)} bytes of {header.size}")
        if sequences < 1 or borders < 2:
            raise UserError(f"{path} lists no documents: the set is empty")
        length = int(_read(stream, header.length_at(sequences - 1), 1, "<i4")[0])
        pointer = int(_read(stream, header.pointer_at(sequences - 1), 1, "<i8")[0])
        if _read(stream, header.border_at(borders - 1), 1, "<i8")[0] != sequences:
            raise UserError(f"{path} is damaged: its documents do not end with its last sequence")
    return header, pointer + length * np.dtype(header.dtype).itemsize


def document_spans(
    prefix: str, advance: Advance = lambda count: None, documents: range | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The documents of a set, or a range of them, some ten thousand at a time; `advance` is called with their number.

    Yields:
        Number of the first token in the stream of all tokens, and number of tokens, of consecutive documents.

    Raises:
        UserError: as `check_files`; or the documents are not in order.
    """
    carried = np.empty(0, dtype=np.int64)
    header = check_files(prefix)
    for starts in _document_starts(prefix, header, documents or range(header.documents)):
        borders = np.concatenate([carried, starts])
        lengths = np.diff(borders)
        if (lengths < 0).any():
            raise not_in_order(prefix)
        yield borders[:-1], lengths
        advance(len(lengths))
        carried = borders[-1:]


def _document_starts(prefix: str, header: IndexHeader, documents: range) -> Iterator[NDArray[np.int64]]:
    """The first token of each document, and last the first one behind them."""
    end = os.path.getsize(f"{prefix}.bin")
    with open(f"{prefix}.idx", "rb") as stream:
        for begin in range(documents.start, documents.stop + 1, _CHUNK):
            # The border after the last document is the number of all sequences, whose pointer is the end.
            borders = _read(stream, header.border_at(begin), min(_CHUNK, documents.stop + 1 - begin), "<i8")
            if borders[0] < 0 or borders[-1] > header.sequences or (np.diff(borders) < 0).any():
                raise not_in_order(prefix)
            yield _pointers(stream, header, borders, end) // np.dtype(header.dtype).itemsize


def not_in_order(prefix: str) -> UserError:
    """What is raised for a set whose documents overlap."""
    return UserError(f"{prefix}.idx is damaged: its documents are not in order; prepare the set again")


def _pointers(stream: BinaryIO, header: IndexHeader, sequences: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Byte offsets of some sequences in ascending order; `end` for an empty document behind the last sequence."""
    found = np.full(len(sequences), end, dtype=np.int64)
    # In pieces as well: a document may have any number of sequences.
    position = 0
    while position < len(sequences) and (first := int(sequences[position])) < header.sequences:
        count = min(_CHUNK, header.sequences - first)
        after = int(np.searchsorted(sequences, first + count))
        pointers = _read(stream, header.pointer_at(first), int(sequences[after - 1]) - first + 1, "<i8")
        found[position:after] = pointers[sequences[position:after] - first]
        position = after
    return found


def _read(stream: BinaryIO, offset: int, count: int, dtype: str) -> NDArray[Any]:
    stream.seek(offset)
    return np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype=dtype)


def create_set(prefix: str, header: IndexHeader, tokens: int) -> None:
    """Makes the `.bin` and the `.idx` of a set in full length; `write_documents` fills them in."""
    with open(f"{prefix}.idx", "wb") as index:
        index.write(header.packed())
        index.truncate(header.size)  # the first border is 0 already
    with open(f"{prefix}.bin", "wb") as stream:
        stream.truncate(tokens * np.dtype(header.dtype).itemsize)


def write_documents(
    prefix: str, header: IndexHeader, document: int, token: int, tokens: NDArray[Any], lengths: NDArray[np.int64]
) -> None:
    """Writes consecutive documents, of one sequence each, into a set, of which other processes may write other parts.

    Args:
        prefix: of a set made by `create_set`.
        header: the same as there.
        document: number of the first document in the set.
        token: number of its first token in the set.
        tokens: of all these documents.
        lengths: in tokens, `[documents]`.
    """
    assert header.sequences == header.documents
    itemsize = np.dtype(header.dtype).itemsize
    with open(f"{prefix}.bin", "r+b") as stream:
        _write(stream, token * itemsize, tokens.astype(header.dtype, copy=False))
    starts = token + np.cumsum(lengths) - lengths
    with open(f"{prefix}.idx", "r+b") as index:
        _write(index, header.length_at(document), lengths.astype("<i4"))
        _write(index, header.pointer_at(document), (starts * itemsize).astype("<i8"))
        _write(index, header.border_at(document + 1), document + np.arange(1, len(lengths) + 1, dtype="<i8"))


def _write(stream: BinaryIO, offset: int, values: NDArray[Any]) -> None:
    stream.seek(offset)
    stream.write(values.data)
