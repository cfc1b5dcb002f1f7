"""A tensor in a mapped file of a Megatron checkpoint: a zip archive with one uncompressed storage."""

from __future__ import annotations

import io
import mmap
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from checkpoint_convert.mapped_file import tensor_view
from nld_train.errors import UserError

_LOCAL_HEADER_BYTES = 30


class StoredPiece:
    """A stored tensor inside a mapped file: a zip archive as `torch.save` writes it, with one uncompressed storage.

    Args:
        path: the file, for messages.
        key: of the tensor, for messages.
        mapping: the file.
        offset: offset of the archive's first byte in the file.
        length: bytes of the archive.

    Raises:
        ValueError, zipfile.BadZipFile: the archive is missing or truncated.
    """

    def __init__(self, path: Path, key: str, mapping: mmap.mmap, offset: int, length: int) -> None:
        self.path, self.key = path, key
        archive = zipfile.ZipFile(_window(mapping, offset, length))
        record = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
        header = offset + record.header_offset
        name, extra = (int.from_bytes(mapping[header + at : header + at + 2], "little") for at in (26, 28))
        start = header + _LOCAL_HEADER_BYTES + name + extra
        if start + record.file_size > offset + length or record.compress_type != zipfile.ZIP_STORED:
            raise ValueError("the stored tensor is not inside its piece")
        self.crc = record.CRC
        self.data = memoryview(mapping)[start : start + record.file_size]

    def tensor(self, dtype: torch.dtype, sizes: tuple[int, ...]) -> Tensor:
        """The tensor as a view of the file."""
        if torch.Size(sizes).numel() * dtype.itemsize != len(self.data):
            raise UserError(
                f"{self.path}: {self.key} has {len(self.data)} bytes, which is not {list(sizes)} of {dtype}"
            )
        return tensor_view(self.data, dtype, sizes)

    def check(self) -> None:
        """Compares the checksum.

        Raises:
            UserError: the content has changed since it was written.
        """
        if zlib.crc32(self.data) != self.crc:
            raise UserError(f"{self.path}: {self.key} does not have the content that was written (CRC-32)")


class _Window(io.RawIOBase):
    """A read-only file over a part of a mapped one."""

    def __init__(self, mapping: mmap.mmap, offset: int, length: int) -> None:
        self.mapping, self.offset, self.length, self.position = mapping, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        stop = min(self.length, self.position + len(buffer))
        data = self.mapping[self.offset + self.position : self.offset + stop]
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _window(mapping: mmap.mmap, offset: int, length: int) -> BinaryIO:
    if offset + length > len(mapping):
        raise ValueError(f"the file has {len(mapping)} bytes instead of {offset + length} or more")
    return _Window(mapping, offset, length)  # type: ignore[return-value]
