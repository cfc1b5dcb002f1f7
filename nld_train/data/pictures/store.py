"""The pictures of a chat set: their encoded bytes in one file, and beside it an index and where they stand in the text.

- `PREFIX.pictures.bin`: the bytes of each different picture, as they came, one after another.
- `PREFIX.pictures.npy`: `PICTURE` `[pictures]`, where each is in that file, and its size after resizing.
- `PREFIX.occurrences.npy`: int64 `[2, occurrences]`: at which tokens of the set the first image tokens of pictures are,
  ascending, and the numbers of these pictures. A picture that several conversations hold is stored once, and occurs
  several times.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nld_train.data.pictures.references import Picture
from nld_train.errors import UserError

BYTES, INDEX, OCCURRENCES = PICTURE_FILES = (".pictures.bin", ".pictures.npy", ".occurrences.npy")
PICTURE = np.dtype([("offset", "<i8"), ("length", "<i8"), ("height", "<i4"), ("width", "<i4")])
# Of pictures that one process has written: as PICTURE, with the identity of the bytes.
WRITTEN = np.dtype([*PICTURE.descr, ("digest", "V16")])


class PictureWriter:
    """Writes the pictures of a shard, each different one once.

    Args:
        stream: the file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._numbers: dict[bytes, int] = {}
        self._rows: list[tuple[int, int, int, int, bytes]] = []
        self._end = 0

    def add(self, picture: Picture) -> int:
        """The number of a picture in the file, which has its bytes afterwards."""
        number = self._numbers.setdefault(picture.digest, len(self._rows))
        if number == len(self._rows):
            length = self._stream.write(picture.data)
            self._rows.append((self._end, length, picture.height, picture.width, picture.digest))
            self._end += length
        return number

    def written(self) -> NDArray[np.void]:
        """What is in the file, `WRITTEN` `[pictures]`."""
        return np.array(self._rows, dtype=WRITTEN)


@dataclass(frozen=True)
class ShardPictures:
    """The pictures of a shard.

    Attributes:
        path: of their bytes.
        written: `WRITTEN` `[pictures]`.
        occurrences: int64 `[2, occurrences]`, tokens and pictures of the shard.
        first_token: of the shard, in the set.
    """

    path: Path
    written: NDArray[np.void]
    occurrences: NDArray[np.int64]
    first_token: int


@dataclass(frozen=True)
class PictureCounts:
    """Different pictures of a set, their bytes, and how often they stand in its text."""

    pictures: int
    bytes: int
    occurrences: int


def join_pictures(prefix: str, shards: Sequence[ShardPictures]) -> PictureCounts:
    """Writes the three files of a set; a picture of several shards is stored once.

    Args:
        prefix: path of the set without suffix.
        shards: in order.
    """
    written = np.concatenate([np.empty(0, WRITTEN), *(shard.written for shard in shards)])
    # Numbered as they occur first, so that the files do not depend on how the shards were made.
    _, first, same = np.unique(written["digest"], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    numbers = rank[same] if len(written) else np.empty(0, np.int64)
    kept = np.sort(first)
    index = written[kept][list(PICTURE.names or ())].astype(PICTURE)
    index["offset"] = np.cumsum(index["length"]) - index["length"]
    np.save(prefix + INDEX, index)
    _copy(prefix, shards, kept)
    begins = np.cumsum([0, *(len(shard.written) for shard in shards)])
    occurrences = [
        np.stack([shard.occurrences[0] + shard.first_token, numbers[begin + shard.occurrences[1]]])
        for shard, begin in zip(shards, begins, strict=False)
    ]
    joined = np.concatenate([np.empty((2, 0), np.int64), *occurrences], axis=1)
    np.save(prefix + OCCURRENCES, joined)
    return PictureCounts(len(kept), int(index["length"].sum()), joined.shape[1])


def _copy(prefix: str, shards: Sequence[ShardPictures], kept: NDArray[np.int64]) -> None:
    """Writes the bytes of the pictures with these numbers among those of all shards, ascending."""
    begin = 0
    with open(prefix + BYTES, "wb") as result:
        for shard in shards:
            end = begin + len(shard.written)
            own = kept[slice(*np.searchsorted(kept, [begin, end]))] - begin
            begin = end
            if len(own):
                with open(shard.path, "rb") as stream:
                    for row in shard.written[own]:
                        stream.seek(int(row["offset"]))
                        result.write(stream.read(int(row["length"])))


@dataclass(frozen=True)
class StoredPicture:
    """A picture of a set.

    Attributes:
        number: in the set.
        begin: its first image token, in the tokens that were asked for.
        height: in pixels, after resizing.
        width: the same.
        encoded: uint8 `[bytes]`, a view of the file, which is read when it is used.
    """

    number: int
    begin: int
    height: int
    width: int
    encoded: NDArray[np.uint8]

    @property
    def data(self) -> bytes:
        """Its encoded bytes."""
        return self.encoded.tobytes()


class PictureStore:
    """The pictures of a set, read from memory maps.

    Args:
        prefix: path of the set without suffix.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        check_pictures(prefix)
        self._index, occurrences = _array(prefix + INDEX, PICTURE), _array(prefix + OCCURRENCES, np.dtype(np.int64), 2)
        self._tokens, self._pictures = occurrences
        size = os.path.getsize(prefix + BYTES)
        self._bytes = np.memmap(prefix + BYTES, np.uint8, mode="r") if size else np.empty(0, np.uint8)

    def within(self, start: int, count: int) -> list[StoredPicture]:
        """The pictures whose image tokens are among tokens `start .. start + count - 1` of the set, in order."""
        occurrences = slice(*np.searchsorted(self._tokens, [start, start + count]))
        found = zip(self._tokens[occurrences].tolist(), self._pictures[occurrences].tolist(), strict=True)
        return [self._read(number, token - start) for token, number in found]

    def _read(self, number: int, begin: int) -> StoredPicture:
        row = self._index[number]
        offset, length = int(row["offset"]), int(row["length"])
        encoded = self._bytes[offset : offset + length]
        return StoredPicture(number, begin, int(row["height"]), int(row["width"]), encoded)


def check_pictures(prefix: str) -> None:
    """Refuses a set whose pictures are missing or truncated.

    Raises:
        UserError: names the file.
    """
    index, occurrences = _array(prefix + INDEX, PICTURE), _array(prefix + OCCURRENCES, np.dtype(np.int64), 2)
    try:
        size = os.path.getsize(prefix + BYTES)
    except OSError as error:
        raise UserError(f"{prefix}{BYTES} cannot be read ({error.strerror}): prepare the set again") from error
    end = int(index[-1]["offset"] + index[-1]["length"]) if len(index) else 0
    if size != end:
        raise UserError(
            f"{prefix}{BYTES} is damaged: it has {size} bytes, and {prefix}{INDEX} says {end}; prepare the set again"
        )
    if len(occurrences) != 2 or (occurrences.shape[1] and not 0 <= occurrences[1, -1] < len(index)):
        raise UserError(f"{prefix}{OCCURRENCES} is damaged: it names pictures that {prefix}{INDEX} has not")


def _array(path: str, dtype: np.dtype[Any], dimensions: int = 1) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}): prepare the set again") from error
    if found.dtype != dtype or found.ndim != dimensions:
        raise UserError(f"{path} is damaged: it is no list of pictures; prepare the set again")
    array: NDArray[Any] = found
    return array
