"""A set of a billion documents opens at once, and a step begins without work for each of them.

Its files are sparse: 40 GB in length, of which almost nothing is written. The entries of the index are holes until the
moment in which a document is looked up, so whatever else were read of it would be zeros, and the borders of samples
would be wrong.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import SHORT, TINY_MODEL, composed, data_overrides, records_of, short_stages, train_here

from nld_train.config.plan import stage_plans
from nld_train.data.batches import batches
from nld_train.data.document_index import DocumentIndex
from nld_train.data.endings import fill_share
from nld_train.data.order import stage_orders
from nld_train.data.packed import PackedSamples
from nld_train.data.samples import training_samples
from nld_train.data.token_index import IndexHeader, check_files, create_set

DOCUMENTS, LENGTH = 10**9, 10
ITEMSIZE = np.dtype(np.uint16).itemsize
HEADER = IndexHeader(np.uint16, DOCUMENTS, DOCUMENTS)
# A search halves the documents 30 times, once for each end of a sample.
LOOKUPS_PER_SAMPLE = 2 * (DOCUMENTS.bit_length() + 1)


def write_entry(prefix: str, document: int) -> None:
    """The entries of a document: its first sequence, and where that begins."""
    with open(f"{prefix}.idx", "r+b") as index:
        for offset, value in (
            (HEADER.border_at(document), document),
            (HEADER.pointer_at(document), document * LENGTH * ITEMSIZE),
        ):
            os.pwrite(index.fileno(), struct.pack("<q", value), offset)


@pytest.fixture
def sparse_set(tmp_path: Path) -> str:
    """A billion documents of ten tokens, of which only the entries that `check_files` reads are there."""
    prefix = str(tmp_path / "sparse")
    create_set(prefix, HEADER, DOCUMENTS * LENGTH)
    write_entry(prefix, DOCUMENTS - 1)
    with open(f"{prefix}.idx", "r+b") as index:
        os.pwrite(index.fileno(), struct.pack("<i", LENGTH), HEADER.length_at(DOCUMENTS - 1))
        os.pwrite(index.fileno(), struct.pack("<q", DOCUMENTS), HEADER.border_at(DOCUMENTS))
    return prefix


@pytest.fixture
def looked_up(sparse_set: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The documents that were looked up so far: each gets its entries just before."""
    found: list[int] = []

    def recording(plain: Callable[[PackedSamples, int], int]) -> Callable[[PackedSamples, int], int]:
        def lookup(samples: PackedSamples, document: int) -> int:
            write_entry(sparse_set, document)
            found.append(document)
            return plain(samples, document)

        return lookup

    monkeypatch.setattr(PackedSamples, "_document_start", recording(PackedSamples._document_start))
    return found


def allocated(prefix: str) -> int:
    return sum(512 * os.stat(prefix + suffix).st_blocks for suffix in (".bin", ".idx"))


def test_it_opens_in_less_than_a_second(sparse_set: str, looked_up: list[int]) -> None:
    # The fastest of three, as the machine may be busy.
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        samples = PackedSamples(sparse_set, 4096)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1
    assert not looked_up
    assert (samples.documents, samples.tokens, len(samples)) == (10**9, 10**10, (10**10 - 1) // 4096)
    assert os.path.getsize(f"{sparse_set}.idx") == HEADER.size > 20 * 10**9
    assert allocated(sparse_set) < 1 << 20


def test_a_sample_in_its_middle_has_its_borders(sparse_set: str, looked_up: list[int]) -> None:
    samples = PackedSamples(sparse_set, 4096)
    index = len(samples) // 2 + 1
    ordinals = samples.read(index).documents
    stream = np.arange(index * 4096, index * 4096 + 4097) // LENGTH
    assert ordinals.tolist() == (stream - stream[0]).tolist()
    assert len(looked_up) <= LOOKUPS_PER_SAMPLE + 4096 // LENGTH + 2


def test_a_step_begins_without_work_for_each_document(sparse_set: str, looked_up: list[int], tmp_path: Path) -> None:
    words = [*TINY_MODEL, *SHORT, *data_overrides(sparse_set), *short_stages(1, 1)]
    config = composed(*words)
    begin = time.perf_counter()
    order = stage_orders(config, stage_plans(config))["joint"]
    first = next(
        batches(training_samples(config, "joint", order), first_step=0, last_step=1, global_size=4, micro_size=4)
    )
    assert time.perf_counter() - begin < 1
    assert first[0]["noisy_tokens"].shape == (4, 24)
    assert 0 < len(looked_up) <= 4 * (LOOKUPS_PER_SAMPLE + 24 // LENGTH + 2)
    for row, sample_index in zip(first[0]["documents"], first[0]["sample_index"].tolist(), strict=True):
        _, index = order.locate(sample_index)
        stream = np.arange(index * 24, index * 24 + 25) // LENGTH
        assert row.tolist() == (stream - stream[0]).tolist()
    del looked_up[:]
    assert [record["step"] for record in records_of(train_here(tmp_path / "run", *words))] == [1, 2]
    assert 0 < len(looked_up) <= 8 * (LOOKUPS_PER_SAMPLE + 24 // LENGTH + 2)
    assert allocated(sparse_set) < 16 << 20


def test_a_plan_counts_the_fill_of_some_samples_only(sparse_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 samples of 24 tokens, whose blocks of 5 are full: documents of ten tokens have no fill."""
    found: list[int] = []
    plain = DocumentIndex.__getitem__

    def lookup(index: DocumentIndex, document: int) -> int:
        write_entry(sparse_set, document)
        found.append(document)
        return plain(index, document)

    monkeypatch.setattr(DocumentIndex, "__getitem__", lookup)
    begin = time.perf_counter()
    share = fill_share(sparse_set, 1000, 5)
    assert time.perf_counter() - begin < 5
    assert share == 0
    assert len(found) < 256 * (LOOKUPS_PER_SAMPLE + 2 * 1000 // LENGTH + 4)
    assert check_files(sparse_set).documents == DOCUMENTS
