"""The documents of a piece of a source, one at a time."""

from __future__ import annotations

import io
import json
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from nld_train.data.sources import Piece, SourceSettings
from nld_train.errors import UserError


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: its content.
        key: decides whether it is held out: the file's name where a file is a document, else the text.
    """

    text: str
    key: str


def documents(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    """Reads the documents of a piece; empty ones are left out.

    Raises:
        UserError: the file cannot be read or decoded, or a record has no text. The message names file and offset.
    """
    try:
        for document in _READERS[piece.kind](piece, settings):
            if document.text:
                yield document
    except OSError as error:
        raise UserError(f"{piece.path} cannot be read: {error.strerror or error}") from error


def _python_file(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    """Python source in the encoding that it declares."""
    with tokenize.open(piece.path) as stream:
        yield Document(stream.read(), piece.name)


def _file(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    with _open(piece.path) as stream:
        yield Document(_decode(stream.read(), piece, 0, settings), piece.name)


def _lines(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    for offset, raw in _raw_lines(piece):
        text = _decode(raw, piece, offset, settings).rstrip("\r\n")
        yield Document(text, text)


def _paragraphs(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    """Runs of lines between blank lines."""
    lines: list[str] = []
    for offset, raw in _raw_lines(piece):
        line = _decode(raw, piece, offset, settings)
        if line.strip():
            lines.append(line)
        elif lines:
            yield _paragraph(lines)
            lines = []
    if lines:
        yield _paragraph(lines)


def _paragraph(lines: Iterable[str]) -> Document:
    text = "".join(lines)
    return Document(text, text)


def _json_lines(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    for offset, raw in _raw_lines(piece):
        if not raw.strip():
            continue
        where = f"{piece.path}, line at byte {offset}"
        try:
            record = json.loads(_decode(raw, piece, offset, settings))
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); one object per line") from error
        if not isinstance(record, dict) or settings.text_key not in record:
            keys = ", ".join(record) if isinstance(record, dict) else "no object"
            raise UserError(f"{where}: no key {settings.text_key!r} ({keys}): give --text-key")
        yield _record(record[settings.text_key], where, settings)


def _parquet(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    where = f"{piece.path}, row group {piece.begin}"
    try:
        with parquet.ParquetFile(piece.path) as file:
            names = file.schema_arrow.names
            if settings.text_key not in names:
                raise UserError(
                    f"{piece.path} has no column {settings.text_key!r}: --text-key must be one of {', '.join(names)}"
                )
            column = file.read_row_group(piece.begin, columns=[settings.text_key]).column(0)
    except pyarrow.ArrowException as error:
        raise UserError(f"{where}: {error}") from error
    for value in column:
        yield _record(value.as_py(), where, settings)


def _dataset(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    column = piece.data.select_columns([settings.text_key])
    for row in column.select(range(piece.begin, piece.end or 0)):
        yield _record(row[settings.text_key], f"{piece.path}, rows from {piece.begin}", settings)


def _record(value: Any, where: str, settings: SourceSettings) -> Document:
    if value is None:
        return Document("", "")
    if not isinstance(value, str):
        raise UserError(f"{where}: {settings.text_key!r} is {type(value).__name__}, not text: give --text-key")
    return Document(value, value)


def _open(path: str) -> Any:
    """Opens a file, decompressing it by its suffix."""
    if not path.lower().endswith((".gz", ".zst", ".bz2")):
        return open(path, "rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(path, compression="detect"))


def _raw_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Byte offset and bytes of each line that begins in the piece's range."""
    with _open(piece.path) as stream:
        offset = piece.begin
        if offset:
            stream.seek(offset - 1)
            offset += len(stream.readline()) - 1  # the rest of a line of the previous piece
        for raw in _until_end(stream):
            if piece.end is not None and offset >= piece.end:
                return
            yield offset, raw
            offset += len(raw)


def _until_end(stream: BinaryIO) -> Iterator[bytes]:
    while line := stream.readline():
        yield line


def _decode(raw: bytes, piece: Piece, offset: int, settings: SourceSettings) -> str:
    try:
        return raw.decode("utf-8", errors=settings.encoding_errors)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{piece.path} is not UTF-8 at byte {offset + error.start}: give --encoding-errors replace or ignore, "
            "or leave the file out with --glob"
        ) from error


_READERS = {
    "python": _python_file,
    "file": _file,
    "lines": _lines,
    "paragraphs": _paragraphs,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "dataset": _dataset,
}
