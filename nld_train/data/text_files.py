"""Text files as they lie on a disk: what their names say they hold, their compression, and byte order marks.

Documents and prompts are read through this module, so that a file is the same thing to every command.
"""

from __future__ import annotations

import io
import lzma
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from nld_train.errors import UserError

FileFormat = Literal["text", "jsonl", "parquet"]

_JSON_LINES = (".jsonl", ".ndjson", ".json", ".jsonlines", ".jl")
_PARQUET = (".parquet", ".pq")
# Ending -> its name in Arrow, which has no xz.
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".xz": None}
_ARCHIVE, _TABLE, _PAGES = "unpack it", "convert it to Parquet or JSONL", "extract its text"
_REFUSED = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".br", ".lzma", ".lz", ".lzo", ".z", ".sz", ".snappy"), "decompress it"),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".db", ".sqlite"), _TABLE),
    **dict.fromkeys((".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".safetensors", ".h5"), _TABLE),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".epub", ".djvu"), _PAGES),
}
# First bytes of files that are no text, whatever their names say.
_RENAME, _CONVERT = "its name must end with {}", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
_SIGNATURES = {
    b"\x1f\x8b": ("gzip", _RENAME.format(".gz")),
    b"BZh91AY&SY": ("bzip2", _RENAME.format(".bz2")),
    b"\x28\xb5\x2f\xfd": ("Zstandard", _RENAME.format(".zst")),
    b"\xfd7zXZ\x00": ("xz", _RENAME.format(".xz")),
    b"\x04\x22\x4d\x18": ("LZ4", _RENAME.format(".lz4")),
    b"PAR1\x15": ("Parquet", _RENAME.format(".parquet")),
    b"PK\x03\x04": ("a zip archive", _ARCHIVE),
    b"\xff\xfe": ("UTF-16", _CONVERT),
    b"\xfe\xff": ("UTF-16", _CONVERT),
}
_MARK = b"\xef\xbb\xbf"


def file_format(path: str) -> FileFormat:
    """What a file holds by its name, in small or capital letters; an ending that says nothing means text.

    Raises:
        UserError: the ending is that of an archive, or of a format that is not read.
    """
    name = os.path.basename(path).lower()
    inner, compression = os.path.splitext(name)
    if compression in _COMPRESSIONS:
        name = inner
    ending = os.path.splitext(name)[1]
    if ending in _REFUSED:
        raise UserError(f"{path}: {ending} files are not read: {_REFUSED[ending]}, or leave it out")
    if ending in _PARQUET and compression in _COMPRESSIONS:
        raise UserError(f"{path}: Parquet inside of {compression} is not read: decompress it, or leave it out")
    if ending in _JSON_LINES:
        return "jsonl"
    return "parquet" if ending in _PARQUET else "text"


def is_compressed(path: str) -> bool:
    """Whether a file is decompressed when it is read, by its ending."""
    return _compression(path) in _COMPRESSIONS


def is_json_array(path: str) -> bool:
    """Whether a file of JSON is one list, and not a value in each line."""
    with open_text(path) as file:
        return next((raw for _, raw in file.lines() if raw.strip()), b"").lstrip().startswith(b"[")


def _compression(path: str) -> str:
    return os.path.splitext(path)[1].lower()


class TextFile:
    """The bytes of an open text file, decompressed, without a leading byte order mark.

    Args:
        path: of the file.
        begin: where to begin, in a file that is not compressed.

    Raises:
        UserError: its first bytes are those of another format than its name says.
    """

    def __init__(self, path: str, begin: int = 0) -> None:
        self._raw, self._stream = _open(path)
        if begin:
            self._stream.seek(begin)
            self.begin = begin
        else:
            self.begin = self._skip_mark(path)

    def _skip_mark(self, path: str) -> int:
        head = _peek(self._stream)
        for signature, (name, cure) in _SIGNATURES.items():
            if head.startswith(signature):
                raise UserError(f"{path} is no UTF-8 text, it is {name}: {cure}, or leave it out")
        return len(self._stream.read(len(_MARK))) if head.startswith(_MARK) else 0

    @property
    def position(self) -> int:
        """Bytes of the file itself that have been read, more than were decompressed and used."""
        return self._raw.tell()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, all that are left by default."""
        return self._stream.read(size)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Offset in the decompressed file and bytes of each line that is left, with its line break."""
        offset = self.begin
        while line := self._stream.readline():
            yield offset, line
            offset += len(line)

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()
        self._raw.close()


@contextmanager
def open_text(path: str, begin: int = 0) -> Iterator[TextFile]:
    """Opens a text file; arguments as for `TextFile`.

    Raises:
        UserError: it cannot be read or decompressed; or as `TextFile`.
    """
    try:
        file = TextFile(path, begin)
        try:
            yield file
        finally:
            file.close()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _open(path: str) -> tuple[Any, io.BufferedIOBase]:
    """A file, and the stream of its decompressed content."""
    compression = _compression(path)
    codec = _COMPRESSIONS.get(compression)
    if codec is None:
        raw = io.BufferedReader(io.FileIO(path))
        return raw, lzma.open(raw) if compression in _COMPRESSIONS else raw
    import pyarrow

    file = pyarrow.OSFile(path)
    return file, io.BufferedReader(pyarrow.CompressedInputStream(file, codec))


def _peek(stream: Any) -> bytes:
    """The next bytes of a stream, which stay in it."""
    head: bytes = stream.peek(max(map(len, _SIGNATURES)))
    return head
