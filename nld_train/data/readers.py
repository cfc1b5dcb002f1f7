"""The documents of a piece of a source, one at a time."""

from __future__ import annotations

import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nld_train.data.chat.rows import Conversation, conversation_of, without_nulls
from nld_train.data.json_array import array_elements
from nld_train.data.records import parse_record, text_under
from nld_train.data.sources import Piece, SourceSettings
from nld_train.data.text_files import open_text
from nld_train.errors import UserError

_CURE = "give --text-key"
_PARQUET_ROWS = 1024
# Rows with pictures in memory at once.
_PICTURE_ROWS = 32


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: its content.
        key: decides whether it is held out: the file's name where a file is a document, else the text.
        read: input of the piece that has been read with it, in the unit of `Piece.size`.
        conversation: of a row of chat data, whose text is what is said in it.
        is_bad: whether it is a row that is no conversation, and is left out for that.
    """

    text: str
    key: str
    read: int = 0
    conversation: Conversation | None = None
    is_bad: bool = False


def documents(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    """Reads the documents of a piece; empty ones are left out.

    Raises:
        UserError: the file cannot be read or decoded, or a record has no text. The message names file and offset.
    """
    try:
        for document in _READERS[piece.kind](piece, settings):
            if document.text or document.conversation is not None or document.is_bad:
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
        where = _LineNumber(piece.path, line.offset)
        record = parse_record(_decode(line.raw, piece, line.offset, settings), where)
        yield _of_record(record, where, line.read, settings, piece.path)


def _json_array(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    for number, (record, read) in enumerate(array_elements(piece.path), 1):
        yield _of_record(record, f"{piece.path}, row {number}", min(read, piece.size), settings, piece.path)


@dataclass(frozen=True)
class _LineNumber:
    """A line in a message of an error; it is counted only then."""

    path: str
    offset: int

    def __str__(self) -> str:
        with open_text(self.path) as file:
            return f"{self.path}, line {1 + sum(offset < self.offset for offset, _ in file.lines())}"


def _parquet(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    where, row = f"{piece.path}, row group {piece.begin}", 0
    try:
        with parquet.ParquetFile(piece.path) as file:
            columns = settings.columns(file.schema_arrow.names, piece.path)
            rows = file.read_row_group(piece.begin, columns=columns)
    except pyarrow.ArrowException as error:
        raise UserError(f"{where}: {error}") from error
    for batch in rows.to_batches(_PARQUET_ROWS if settings.pictures is None else _PICTURE_ROWS):
        for record in batch.to_pylist():
            read = piece.size * (row + 1) // rows.num_rows
            yield _of_record(_of_table(record, settings), f"{where}, row {row}", read, settings, piece.path)
            row += 1


def _dataset(piece: Piece, settings: SourceSettings) -> Iterator[Document]:
    data = piece.data.select_columns(settings.columns(piece.data.column_names, piece.path))
    for number, row in enumerate(_rows(data.select(range(piece.begin, piece.end or 0)), settings)):
        where = f"{piece.path}, row {piece.begin + number}"
        yield _of_record(_of_table(row, settings), where, number + 1, settings, piece.path)


def _rows(data: Any, settings: SourceSettings) -> Iterator[Any]:
    """The rows of a dataset; pictures are not decoded by it, which has no limits, but are bytes as they are stored."""
    if settings.pictures is None:
        yield from data
        return
    for table in data.with_format("arrow").iter(_PICTURE_ROWS):
        yield from table.to_pylist()


def _of_table(record: Any, settings: SourceSettings) -> Any:
    """A row of a table; in conversations without the keys of other rows, which a column of structs has as nulls."""
    return record if settings.chat is None else without_nulls(record)


def _of_record(record: Any, where: object, read: int, settings: SourceSettings, source: str) -> Document:
    """A record as a text or as a conversation with its pictures."""
    if settings.chat is None:
        return _document(text_under(record, settings.text_key, where, _CURE), where, read, settings)
    # The number of a line is not looked up for each of many bad rows.
    named = "a row" if settings.leave_out_bad_rows else where
    try:
        conversation = conversation_of(record, settings.chat, named, settings.pictures is not None)
        if settings.pictures is not None:
            conversation = settings.pictures.read(conversation, source)
    except UserError:
        if not settings.leave_out_bad_rows:
            raise
        return Document("", str(record), read, is_bad=True)
    return Document(conversation.text, conversation.key, read, conversation)


def _document(text: str | bytes | None, where: object, read: int, settings: SourceSettings) -> Document:
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
    "json_array": _json_array,
    "parquet": _parquet,
    "dataset": _dataset,
}
