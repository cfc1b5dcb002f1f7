"""The sources of `nld-data prepare`, cut into pieces that worker processes read independently.

The cut depends on the input and the shard size, never on the number of workers: the documents of all pieces, in order,
are the documents of the set.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nld_train.data.chat.rows import ChatFormat, columns_of
from nld_train.data.folders import files_of
from nld_train.data.pictures.settings import PictureSettings
from nld_train.data.remote import is_remote, local_copies
from nld_train.data.text_files import file_format, is_compressed, is_json_array
from nld_train.errors import UserError, first_line

Format = Literal["auto", "text", "jsonl", "parquet", "folder", "dataset", "stdlib"]
PieceKind = Literal["python", "file", "lines", "paragraphs", "jsonl", "json_array", "parquet", "dataset"]

STDLIB = "stdlib"
_STDLIB_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
_DATASET_ROWS = 10_000


@dataclass(frozen=True)
class SourceSettings:
    """How sources are read.

    Attributes:
        format: of the sources; `auto` guesses it from their names.
        text_key: key or column of the text (JSONL, Parquet, datasets).
        documents_per: the unit that is one document in a text file.
        glob: pattern of the files of a folder that are read.
        split: split of a `datasets` source.
        dataset_config: configuration name of a `datasets` source.
        encoding_errors: how bytes that are not UTF-8 are decoded: Python's `strict`, `replace` or `ignore`.
        shard_bytes: input of a unit of work, approximately.
        chat: format of the rows, which are conversations; None for texts.
        leave_out_bad_rows: whether a row that is no conversation is counted and left out, and not refused.
        pictures: how the pictures of conversations are read; None where they may not have any.
    """

    format: Format = "auto"
    text_key: str = "text"
    documents_per: Literal["file", "line", "paragraph"] = "file"
    glob: str = "**/*"
    split: str = "train"
    dataset_config: str | None = None
    encoding_errors: Literal["strict", "replace", "ignore"] = "strict"
    shard_bytes: int = 8 << 20
    chat: ChatFormat | None = None
    leave_out_bad_rows: bool = False
    pictures: PictureSettings | None = None

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Those of a table's columns that are read.

        Raises:
            UserError: there is none with a text, or with a conversation.
        """
        found = [name for name in names if name == self.text_key]
        if self.chat is not None:
            found = columns_of(names, self.pictures is not None)
        if not found:
            what = f"column {self.text_key!r}: --text-key must be one of" if self.chat is None else "conversations in"
            raise UserError(f"{where} has no {what} {', '.join(names)}")
        return found


@dataclass(frozen=True)
class Piece:
    """Part of a source that one worker reads.

    Attributes:
        kind: how it is read.
        path: file, or name of the `datasets` source.
        name: path relative to the source: the same on every machine.
        begin: first byte (lines), row group (Parquet) or row (datasets).
        end: where to stop; None for the end of the file.
        size: input bytes (rows for `datasets`), for the progress bar and for cutting shards.
        stamp: modification time of the file, so that changed input is not mistaken for finished work.
        data: the open `datasets.Dataset`, pickled with the piece (it refers to files, and so is small).
    """

    kind: PieceKind
    path: str
    name: str
    begin: int = 0
    end: int | None = None
    size: int = 0
    stamp: int = 0
    data: Any = field(default=None, compare=False, repr=False)


def plan_shards(
    sources: Iterable[str], settings: SourceSettings, note: Callable[[str], None] = lambda line: None
) -> list[list[Piece]]:
    """Cuts sources into shards of about `shard_bytes`, in a fixed order.

    Args:
        sources: files, folders, addresses, `datasets` names, or `stdlib`.
        settings: how they are read.
        note: is called with one line about what is left out, and what is downloaded.

    Raises:
        UserError: a source does not exist, cannot be read or is empty.
    """
    shards: list[list[Piece]] = []
    filled = settings.shard_bytes
    for source in sources:
        pieces = _pieces(source, settings, note)
        if not pieces:
            kind = f"files to read (--glob {settings.glob!r})" if os.path.isdir(source) else "text"
            raise UserError(f"{source} holds no {kind}")
        for piece in pieces:
            if filled >= settings.shard_bytes or piece.kind == "dataset":
                shards.append([])
                filled = 0
            shards[-1].append(piece)
            filled += piece.size
    return shards


def _pieces(source: str, settings: SourceSettings, note: Callable[[str], None]) -> list[Piece]:
    if is_remote(source) and settings.format != "dataset":
        copies = local_copies(source, note)
        return [piece for path, name in copies for piece in _named_pieces(path, name, settings, note)]
    return _named_pieces(source, os.path.basename(source), settings, note)


def _named_pieces(source: str, name: str, settings: SourceSettings, note: Callable[[str], None]) -> list[Piece]:
    chosen = settings.format if settings.format != "auto" else _guess_format(source)
    if settings.chat is not None and chosen in ("stdlib", "text"):
        raise _no_conversations(source)
    if chosen == "stdlib":
        return stdlib_pieces()
    if chosen == "dataset":
        return _dataset_pieces(source, settings)
    if chosen == "folder":
        return _folder_pieces(source, settings, note)
    _require_file(source)
    return _file_pieces(source, name, chosen, settings)


def _guess_format(source: str) -> Format:
    if source == STDLIB:
        return "stdlib"
    if os.path.isdir(source):
        saved = {"dataset_info.json", "dataset_dict.json"} & set(os.listdir(source))
        return "dataset" if saved else "folder"
    _require_file(source, " (for a name on the hub of `datasets` give --format dataset)")
    return file_format(source)


def _require_file(source: str, hint: str = "") -> None:
    if not os.path.exists(source):
        raise UserError(f"no such source: {source}{hint}")
    if os.path.isdir(source):
        raise UserError(f"{source} is a folder: leave --format out, or give --format folder or dataset")
    if not os.path.isfile(source):
        raise UserError(f"{source} is no regular file: it is read more than once, so write it to a file first")


def _folder_pieces(folder: str, settings: SourceSettings, note: Callable[[str], None]) -> list[Piece]:
    if not os.path.isdir(folder):
        raise UserError(f"no such folder: {folder}")
    found = files_of(folder, settings.glob)
    for line in found.notes(folder):
        note(line)
    pieces: list[Piece] = []
    for name, path in found.files.items():
        chosen = file_format(path)
        if settings.chat is not None and chosen == "text":
            raise _no_conversations(path, ", or leave it out with --glob")
        pieces += _file_pieces(path, name, chosen, settings)
    return pieces


def _no_conversations(source: str, cure: str = "") -> UserError:
    return UserError(f"{source} is text: conversations are read from JSONL, Parquet and datasets{cure}")


def _file_pieces(path: str, name: str, chosen: Format, settings: SourceSettings) -> list[Piece]:
    if chosen == "parquet":
        return _parquet_pieces(path, name)
    kinds: dict[str, PieceKind] = {"file": "file", "line": "lines", "paragraph": "paragraphs"}
    kind = "jsonl" if chosen == "jsonl" else kinds[settings.documents_per]
    if kind == "jsonl" and settings.chat is not None and is_json_array(path):
        kind = "json_array"
    if kind in ("jsonl", "lines") and not is_compressed(path):
        return _byte_ranges(kind, path, name, settings.shard_bytes)
    return [_whole_file(kind, path, name)]


def _whole_file(kind: PieceKind, path: str, name: str) -> Piece:
    status = os.stat(path)
    return Piece(kind, path, name, size=status.st_size, stamp=status.st_mtime_ns)


def _byte_ranges(kind: PieceKind, path: str, name: str, step: int) -> list[Piece]:
    """A file of lines, cut at fixed bytes; each piece has the lines that begin in its range."""
    status = os.stat(path)
    starts = range(0, max(status.st_size, 1), step)
    ends = [min(start + step, status.st_size) for start in starts]
    return [
        Piece(kind, path, name, start, end, end - start, status.st_mtime_ns)
        for start, end in zip(starts, ends, strict=True)
    ]


def _parquet_pieces(path: str, name: str) -> list[Piece]:
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file: {error}") from error
    stamp = os.stat(path).st_mtime_ns
    return [
        Piece("parquet", path, name, group, group + 1, metadata.row_group(group).total_byte_size, stamp)
        for group in range(metadata.num_row_groups)
    ]


def _dataset_pieces(source: str, settings: SourceSettings) -> list[Piece]:
    data = load_dataset_source(source, settings)
    settings.columns(data.column_names, source)
    rows = len(data)
    starts = range(0, rows, _DATASET_ROWS)
    return [
        Piece("dataset", source, data._fingerprint, start, min(start + _DATASET_ROWS, rows), _DATASET_ROWS, data=data)
        for start in starts
    ]


def load_dataset_source(source: str, settings: SourceSettings) -> Any:
    """Opens a `datasets` source: a directory of `save_to_disk`, or whatever `load_dataset` takes.

    Raises:
        UserError: `datasets` cannot open it, or it has no such split.
    """
    import datasets

    try:
        if os.path.isdir(source) and {"state.json", "dataset_dict.json"} & set(os.listdir(source)):
            data = datasets.load_from_disk(source)
        else:
            data = datasets.load_dataset(source, settings.dataset_config, split=settings.split)
        return data[settings.split] if isinstance(data, datasets.DatasetDict) else data
    except Exception as error:  # the library raises many kinds of exceptions
        raise UserError(f"datasets cannot open {source} (split {settings.split!r}): {first_line(error)}") from error


def stdlib_pieces() -> list[Piece]:
    """The running interpreter's own standard library, without its tests, sorted by path: real text on every machine."""
    root = sysconfig.get_path("stdlib")
    pieces = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED and not name.startswith("config-")]
        for file in files:
            if file.endswith(".py") and not file.startswith("_sysconfigdata"):
                path = os.path.join(folder, file)
                pieces.append(_whole_file("python", path, os.path.relpath(path, root).replace(os.sep, "/")))
    return sorted(pieces, key=lambda piece: piece.name)
