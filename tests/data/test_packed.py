"""Samples are the slices of the token stream that they claim to be; broken files are refused in one line."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from token_documents import random_documents

from nld_train.data.packed import PackedSamples, indexed_dataset_module
from nld_train.errors import UserError


@pytest.mark.parametrize("length", [1, 7, 24, 100])
def test_samples_equal_slices_of_the_naive_stream(tmp_path: Path, write_set, length: int) -> None:
    documents = random_documents(3, 50)
    samples = PackedSamples(write_set(tmp_path / "set", documents), length)
    stream = np.concatenate([np.array(document) for document in documents])
    owners = np.concatenate([np.full(len(document), i) for i, document in enumerate(documents)])
    assert samples.tokens == len(stream)
    assert samples.documents == 50
    assert len(samples) == (len(stream) - 1) // length
    for index in range(len(samples)):
        tokens, ordinals, *_ = samples.read(index)
        window = slice(index * length, index * length + length + 1)
        assert tokens.tolist() == stream[window].tolist()
        assert ordinals.tolist() == (owners[window] - owners[window][0]).tolist()
        assert tokens.dtype == ordinals.dtype == np.int64
    with pytest.raises(IndexError):
        samples.read(len(samples))


def test_empty_documents_and_documents_of_several_sequences(tmp_path: Path) -> None:
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{tmp_path}/set.bin", dtype=np.int32)
    builder.add_document(np.arange(10, 16), [2, 4])  # one document of two sequences
    builder.add_document(np.array([], dtype=np.int32), [0])
    builder.add_document(np.arange(20, 25), [5])
    builder.add_document(np.array([], dtype=np.int32), [])
    builder.finalize(f"{tmp_path}/set.idx")
    tokens, ordinals, *_ = PackedSamples(f"{tmp_path}/set", 10).read(0)
    assert tokens.tolist() == [10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24]
    assert ordinals.tolist() == [0] * 6 + [1] * 5


def test_pickle_carries_the_path_and_not_the_data(tmp_path: Path, write_set) -> None:
    samples = PackedSamples(write_set(tmp_path / "set", random_documents(4, 50)), 16)
    raw = pickle.dumps(samples)
    assert len(raw) < 500
    assert pickle.loads(raw).read(3)[0].tolist() == samples.read(3)[0].tolist()


def test_fingerprint_tells_contents_and_not_names(tmp_path: Path, write_set) -> None:
    prefixes = [write_set(tmp_path / name, random_documents(seed, 50)) for name, seed in [("a", 1), ("b", 1), ("c", 2)]]
    first, same, other = (PackedSamples(prefix, 8).fingerprint for prefix in prefixes)
    assert first == same != other


def cut(suffix: str, size: int) -> Callable[[Path], None]:
    def damage(prefix: Path) -> None:
        path = prefix.with_suffix(suffix)
        path.write_bytes(path.read_bytes()[:size])

    return damage


def scribble(offset: int, raw: bytes) -> Callable[[Path], None]:
    def damage(prefix: Path) -> None:
        path = prefix.with_suffix(".idx")
        content = bytearray(path.read_bytes())
        content[offset : offset + len(raw)] = raw
        path.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda prefix: prefix.with_suffix(".bin").unlink(), r"set\.bin does not exist"),
        (lambda prefix: prefix.with_suffix(".idx").unlink(), r"set\.idx does not exist"),
        (cut(".bin", 100), r"set\.bin is truncated: it has 100 bytes"),
        (cut(".bin", 0), r"set\.bin is truncated"),
        (cut(".idx", 0), r"set\.idx is not an index"),
        (cut(".idx", 20), r"set\.idx is not an index"),
        (cut(".idx", 60), r"set\.idx is truncated"),
        (scribble(0, b"PK\x03\x04garbage"), r"set\.idx is not an index"),
        (scribble(17, b"\x63"), r"dtype code 99"),
        (scribble(17, b"\x06"), r"dtype code 6"),
        (scribble(18, struct.pack("<Q", 2**60)), r"set\.idx is truncated"),
        (scribble(18, struct.pack("<QQ", 0, 1)), r"lists no documents"),
        (lambda prefix: prefix.with_suffix(".bin").write_bytes(b"\0" * 99999), r"does not belong to its \.idx"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, write_set, damage, message: str) -> None:
    write_set(tmp_path / "set", random_documents(5, 50))
    damage(tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        PackedSamples(str(tmp_path / "set"), 8)
    assert "\n" not in str(caught.value)


def test_a_set_shorter_than_a_sample_is_refused(tmp_path: Path, write_set) -> None:
    prefix = write_set(tmp_path / "set", [[5] * 64])
    assert len(PackedSamples(prefix, 63)) == 1
    with pytest.raises(UserError, match="fewer than one sample"):
        PackedSamples(prefix, 64)
