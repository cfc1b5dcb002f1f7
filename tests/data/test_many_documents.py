"""Sets of many documents: the files are those of Megatron's own builder, and memory does not grow with their number."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from token_documents import random_documents

from nld_train.data.assemble import assemble, plan_assembly
from nld_train.data.held_out_prompts import PromptRequest, write_prompts
from nld_train.data.inspect_set import InspectRequest, inspect_set
from nld_train.data.packed import indexed_dataset_module
from nld_train.data.token_index import IndexHeader, create_set, document_spans, write_documents
from nld_train.data.tokenizer import EncoderSpec, bytes_tokenizer, save_tokenizer
from nld_train.errors import UserError

DOCUMENTS = 1_000_000
BYTES_PER_DOCUMENT = 32


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the bytes that were allocated at most, by Python and numpy."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def spec(vocabulary_size: int) -> EncoderSpec:
    return EncoderSpec("", 2, (), vocabulary_size)


def save_shard(path: Path, lengths: np.ndarray, tokens: np.ndarray) -> Path:
    np.savez(path, train_tokens=tokens, train_lengths=lengths)
    return path


@pytest.mark.parametrize("vocabulary_size", [260, 131_072])
def test_files_are_byte_for_byte_those_of_megatrons_builder(
    tmp_path: Path, write_set: Callable[..., str], vocabulary_size: int
) -> None:
    documents = [*random_documents(3, 50), [2], *random_documents(4, 7)]
    dtype = spec(vocabulary_size).dtype
    expected = write_set(tmp_path / "theirs", documents, dtype)
    shards = []
    for number, part in enumerate((documents[:20], [], documents[20:21], documents[21:])):
        lengths = np.array([len(document) for document in part], dtype=np.int64)
        tokens = np.array([token for document in part for token in document], dtype=dtype)
        shards.append(save_shard(tmp_path / f"{number}.npz", lengths, tokens))
    plan = plan_assembly(str(tmp_path / "ours"), "train", shards, spec(vocabulary_size))
    written: list[int] = []
    content = assemble(plan, 1, written.append)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == Path(expected + suffix).read_bytes()
    stream = np.concatenate([np.array(document) for document in documents])
    assert (content.documents, content.tokens, content.largest_id) == (len(documents), len(stream), stream.max())
    assert sum(written) == len(stream)
    assert np.load(tmp_path / "ours.counts.npy").tolist() == np.bincount(stream, minlength=vocabulary_size).tolist()


def test_writing_the_index_takes_at_most_32_bytes_a_document(tmp_path: Path) -> None:
    lengths = np.ones(DOCUMENTS // 8, dtype=np.int64)
    shards = [save_shard(tmp_path / f"{n}.npz", lengths, np.full(len(lengths), 2, np.uint16)) for n in range(8)]
    with peak_memory() as peak:
        content = assemble(plan_assembly(str(tmp_path / "set"), "train", shards, spec(260)), 1, lambda count: None)
        assert peak() / DOCUMENTS <= BYTES_PER_DOCUMENT
    assert content.documents == DOCUMENTS


@pytest.fixture(scope="module")
def large_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A million documents of 1 to 9 tokens, letters and their end."""
    folder = tmp_path_factory.mktemp("many")
    lengths = np.random.default_rng(5).integers(1, 10, DOCUMENTS)
    header = IndexHeader(np.uint16, DOCUMENTS, DOCUMENTS)
    tokens = np.random.default_rng(6).integers(101, 127, lengths.sum()).astype(np.uint16)
    create_set(f"{folder}/set", header, len(tokens))
    write_documents(f"{folder}/set", header, 0, 0, tokens, lengths)
    save_tokenizer(bytes_tokenizer(), f"{folder}/tokenizer")
    return f"{folder}/set"


def test_inspecting_a_million_documents_streams_them(large_set: str) -> None:
    lengths = np.random.default_rng(5).integers(1, 10, DOCUMENTS)
    with open("/dev/null", "w") as nowhere, peak_memory() as peak:
        inspect_set(InspectRequest(large_set, None, 512, 64, None, 0, None), Console(file=nowhere))
        assert peak() < 8 * DOCUMENTS
    console = Console(width=200)
    with console.capture() as shown:
        inspect_set(InspectRequest(large_set, None, 512, 64, None, 0, None), console)
    text = shown.get()
    assert f"{int(lengths.sum()):,}" in text
    quantiles = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    expected = (f"{q:.0%} {length:,.0f}" for q, length in zip(quantiles, np.quantile(lengths, quantiles), strict=True))
    assert ", ".join(expected) in text


def test_prompts_out_of_a_million_documents_stream_them(large_set: str, tmp_path: Path) -> None:
    folder = Path(large_set).parent
    request = PromptRequest(large_set, str(tmp_path / "prompts.jsonl"), 20, 4, str(folder / "tokenizer"))
    write_prompts(request)  # imports what is imported late
    with peak_memory() as peak:
        assert write_prompts(request) == 20
        assert peak() < 8 * DOCUMENTS


def test_spans_of_documents_of_several_sequences_and_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nld_train.data.token_index._CHUNK", 2)
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{tmp_path}/set.bin", dtype=np.int32)
    sizes: list[list[int]] = [[2, 4], [0], [], [5], [1, 1, 1, 1, 1, 1, 1], [3], []]
    for number, lengths in enumerate(sizes):
        builder.add_document(np.full(sum(lengths), number), lengths)
    builder.finalize(f"{tmp_path}/set.idx")
    starts, lengths_found = (np.concatenate(parts) for parts in zip(*document_spans(f"{tmp_path}/set"), strict=True))
    assert lengths_found.tolist() == [sum(lengths) for lengths in sizes]
    assert starts.tolist() == [0, 6, 6, 6, 11, 18, 21]


def test_texts_that_become_no_token_are_refused(tmp_path: Path) -> None:
    shard = save_shard(tmp_path / "0.npz", np.zeros(3, np.int64), np.empty(0, np.uint16))
    with pytest.raises(UserError, match="makes no token"):
        plan_assembly(str(tmp_path / "set"), "train", [shard], spec(260))
