"""The documents of a piece of a source, one at a time."""

from __future__ import annotations

import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nld_train.data.records import checked_text, parse_record, text_under
from nld_train.data.sources import Piece, SourceSettings
from nld_train.data.text_files import open_text
from nld_train.errors import UserError

_CURE = "give --text-key"


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: its content.
        key: decides whether it is held out: the file's name where a file is a document, else the text.
        read: input of the piece that has been read with it, in the unit of `Piece.size`.
    """

    text: str
    key: str
    read: int = 0


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
        yield Document(stream.read(), piece.name, piece.size)


def _file(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    with open_text(piece.path) as file:
        yield Document(_decode(file.read(), piece, file.begin, settings), piece.name, piece.size)


def _lines(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    for line in _raw_lines(piece):
        text = _decode(line.raw, piece, line.offset, settings).rstrip("\r\n")
        yield Document(text, text, line.read)


def _paragraphs(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    """Runs of lines between blank lines."""
    lines: list[str] = []
    read = 0
    for raw_line in _raw_lines(piece):
        line, read = _decode(raw_line.raw, piece, raw_line.offset, settings), raw_line.read
        if line.strip():
            lines.append(line)
        elif lines:
            yield _paragraph(lines, read)
            lines = []
    if lines:
        yield _paragraph(lines, read)


def _paragraph(lines: Iterable[str], read: int) -> Document:
    text = "".join(lines)
    return Document(text, text, read)


def _json_lines(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    for line in _raw_lines(piece):
        if not line.raw.strip():
            continue
        where = f"{piece.path}, line at byte {line.offset}"
        record = parse_record(_decode(line.raw, piece, line.offset, settings), where)
        yield _document(text_under(record, settings.text_key, where, _CURE), where, line.read, settings)


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
    for row, value in enumerate(column):
        read = piece.size * (row + 1) // len(column)
        yield _value(value.as_py(), f"{where}, row {row}", read, settings)


def _dataset(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    column = piece.data.select_columns([settings.text_key])
    for number, row in enumerate(column.select(range(piece.begin, piece.end or 0))):
        where = f"{piece.path}, row {piece.begin + number}"
        yield _value(row[settings.text_key], where, number + 1, settings)


def _value(value: Any, where: str, read: int, settings: SourceSettings) -> Document:
    return _document(checked_text(value, settings.text_key, where, _CURE), where, read, settings)


def _document(text: str | bytes | None, where: str, read: int, settings: SourceSettings) -> Document:
    """A record as a document; a column of bytes holds UTF-8."""
    if isinstance(text, bytes):
        try:
            text = text.decode(errors=settings.encoding_errors)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: {settings.text_key!r} is not UTF-8 at byte {error.start}: give --encoding-errors replace "
                "or ignore, or the --text-key of a column of text"
            ) from error
    return Document(text or "", text or "", read)


@dataclass(frozen=True)
class _Line:
    """A line that begins in a piece: its offset in the decompressed file, its bytes, and see `Document.read`."""

    offset: int
    raw: bytes
    read: int


def _raw_lines(piece: Piece) -> Iterator[_Line]:
    """The lines that begin in the piece's range."""
    # From the byte before: a line that begins at the border is this piece's, the rest of another is the previous one's.
    with open_text(piece.path, max(0, piece.begin - 1)) as file:
        lines = file.lines()
        if piece.begin:
            next(lines, None)
        for offset, raw in lines:
            # The first line begins in the first piece, even where a byte order mark before it fills the range.
            if piece.end is not None and offset >= piece.end and offset > file.begin:
                return
            read = file.position if piece.end is None else offset + len(raw) - piece.begin
            yield _Line(offset, raw, min(read, piece.size))


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
