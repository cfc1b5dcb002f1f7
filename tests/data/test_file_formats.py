"""Files of documents as users have them: byte order marks, endings, compression, columns of bytes, conversations."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from source_texts import source_texts

from nld_train.data.sources import SourceSettings
from nld_train.errors import UserError

MARK = b"\xef\xbb\xbf"
LINES = b'{"text": "alpha one"}\n{"text": "beta two"}\n'


def read(path: Path, **settings: Any) -> list[str]:
    """The texts of a source."""
    return source_texts(path, SourceSettings(**settings))


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    return str(caught.value)


def arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(content: bytes) -> bytes:
        buffer = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(buffer, codec) as stream:
            stream.write(content)
        return buffer.getvalue().to_pybytes()

    return compress


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": arrow("zstd"),
    ".lz4": arrow("lz4"),
}


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize(
    ("name", "unit", "content", "texts"),
    [
        ("a.jsonl", "file", LINES, ["alpha one", "beta two"]),
        ("a.txt", "file", b"one\n\ntwo\n", ["one\n\ntwo\n"]),
        ("a.txt", "line", b"one\n\ntwo\n", ["one", "two"]),
        ("a.txt", "paragraph", b"one\n\ntwo\n", ["one\n", "two\n"]),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_text(
    tmp_path: Path, name: str, unit: str, content: bytes, texts: list[str], ending: str
) -> None:
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESSIONS[ending](MARK + content))
    assert read(path, documents_per=unit) == texts


@pytest.mark.parametrize("shard_bytes", [1, 2, 3, 4, 5, 30])
def test_a_byte_order_mark_loses_no_line_of_a_file_cut_into_shards(tmp_path: Path, shard_bytes: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(MARK + LINES)
    assert read(tmp_path / "a.jsonl", shard_bytes=shard_bytes) == ["alpha one", "beta two"]


@pytest.mark.parametrize("ending", [".jsonl", ".JSONL", ".ndjson", ".NDJSON", ".jl", ".json", ".jsonl.GZ", ".Jsonl.xz"])
def test_json_lines_are_known_by_any_of_their_endings(tmp_path: Path, ending: str) -> None:
    compress = COMPRESSIONS.get(os.path.splitext(ending)[1].lower(), bytes)
    (tmp_path / f"a{ending}").write_bytes(compress(LINES))
    assert read(tmp_path / f"a{ending}") == ["alpha one", "beta two"]
    assert read(tmp_path) == ["alpha one", "beta two"]


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a.zip", "unpack it"),
        ("a.TAR", "unpack it"),
        ("a.tar.gz", "unpack it"),
        ("a.tgz", "unpack it"),
        ("a.7z", "unpack it"),
        ("a.jsonl.br", "decompress it"),
        ("a.arrow", "convert it to Parquet or JSONL"),
        ("a.pdf", "extract its text"),
        ("a.parquet.gz", "decompress it"),
    ],
)
def test_a_format_that_is_not_read_is_named_and_never_text(tmp_path: Path, name: str, cure: str) -> None:
    (tmp_path / name).write_bytes(b"would pass as text")
    for source in (tmp_path / name, tmp_path):
        message = refusal(source, encoding_errors="replace")
        assert name in message
        assert cure in message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(LINES, mtime=0), "gzip: its name must end with .gz"),
        (lzma.compress(LINES), "xz: its name must end with .xz"),
        (arrow("zstd")(LINES), "Zstandard"),
        (bz2.compress(LINES), "bzip2"),
        ("text".encode("utf-16"), "UTF-16: convert it to UTF-8"),
        (b"PK\x03\x04....", "a zip archive"),
    ],
)
@pytest.mark.parametrize("file", ["a.txt", "a.jsonl", "noending"])
def test_bytes_of_another_format_are_named_and_never_text(tmp_path: Path, content: bytes, name: str, file: str) -> None:
    (tmp_path / file).write_bytes(content)
    assert name in refusal(tmp_path / file, encoding_errors="replace")


@pytest.mark.parametrize("ending", [ending for ending in COMPRESSIONS if ending])
def test_a_compressed_file_that_was_cut_off_is_one_line(tmp_path: Path, ending: str) -> None:
    whole = COMPRESSIONS[ending](b"".join(b'{"text": "document %d"}\n' % number for number in range(2000)))
    (tmp_path / f"a.jsonl{ending}").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(tmp_path / f"a.jsonl{ending}")


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.binary_view(),
        pyarrow.binary(4),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
    ],
    ids=str,
)
def test_a_parquet_column_of_bytes_is_text(tmp_path: Path, kind: pyarrow.DataType) -> None:
    values = pyarrow.array(["caf\u00e9"[:4].encode()[:4], None, b"text"], pyarrow.binary())
    column = values.dictionary_encode() if pyarrow.types.is_dictionary(kind) else values.cast(kind)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", encoding_errors="ignore") == ["caf", "text"]


def test_bytes_that_are_no_text_name_row_and_cure(tmp_path: Path) -> None:
    column = pyarrow.array([b"fine", b"caf\xe9"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet")
    assert "row group 0, row 1: 'text' is not UTF-8 at byte 3: give --encoding-errors" in message
    assert read(tmp_path / "a.parquet", encoding_errors="replace") == ["fine", "caf\ufffd"]


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}, "messages"),
        ({"id": 3, "conversations": [{"from": "human", "value": "hi"}]}, "conversations"),
        ({"text": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "text"),
    ],
)
def test_a_conversation_is_called_one(tmp_path: Path, record: dict[str, object], key: str) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps(record) + "\n")
    message = refusal(tmp_path / "chat.jsonl")
    assert f"chat.jsonl, line 1: is a conversation (turns with roles under {key!r})" in message
    parquet.write_table(pyarrow.table({name: [value] for name, value in record.items()}), tmp_path / "chat.parquet")
    assert "is a conversation" in refusal(tmp_path / "chat.parquet", text_key=key)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "ok", "id": ' + "9" * 5000 + "}", "integer"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": {"nested": 1}}', "'text' is an object, not text"),
        ('{"text": true}', "'text' is true or false, not text"),
        ("null", "holds null, not an object with a text under 'text'"),
    ],
)
def test_json_of_any_kind_is_one_line_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    said = refusal(tmp_path / "a.jsonl")
    assert "a.jsonl, line 2" in said
    assert message in said


def test_a_key_twice_has_its_last_value(tmp_path: Path) -> None:
    """As in every reader of collected text; what was prepared before stays the same."""
    (tmp_path / "a.jsonl").write_text('{"text": "first", "text": "second"}\n')
    assert read(tmp_path / "a.jsonl") == ["second"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "a.txt").write_text("text")
    assert read(tmp_path) == ["text"]
