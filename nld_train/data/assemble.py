"""Joins finished shards, in order, into one Megatron `.bin/.idx`, and counts every id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nld_train.data.shards import shard_size
from nld_train.data.token_index import IndexHeader, create_set, write_documents
from nld_train.data.tokenizer import EncoderSpec
from nld_train.data.workers import run_jobs
from nld_train.errors import UserError
from nld_train.progress import Advance

# Below this starting processes takes longer than writing.
_TOKENS_PER_WORKER = 1 << 24
# Each job returns the counts of a whole vocabulary, so there are few.
_JOBS_PER_WORKER = 8


@dataclass(frozen=True)
class SetContent:
    """Content of the written files: prefix, documents, tokens, the largest id and the tokens' numpy type."""

    prefix: str
    documents: int
    tokens: int
    largest_id: int
    dtype: str


@dataclass(frozen=True)
class Assembly:
    """A set that is put together.

    Attributes:
        prefix: path of the result without suffix.
        name: which set of the shards: `train` or `validation`.
        header: of the `.idx`.
        tokens: of all documents.
        vocabulary_size: ids that are counted.
        parts: of each shard its file, and its first document and token in the set.
    """

    prefix: str
    name: str
    header: IndexHeader
    tokens: int
    vocabulary_size: int
    parts: tuple[tuple[Path, int, int], ...]


def plan_assembly(prefix: str, name: str, shards: Sequence[Path], spec: EncoderSpec) -> Assembly:
    """Finds where each shard belongs in a set.

    Args:
        prefix: path of the result without suffix.
        name: which set of the shards: `train` or `validation`.
        shards: shard files in order.
        spec: the tokenizer.

    Raises:
        UserError: no shard contains a token.
    """
    sizes = np.array([shard_size(path, name) for path in shards], dtype=np.int64)
    documents, tokens = (int(total) for total in sizes.sum(axis=0))
    if not tokens:
        raise UserError(f"the tokenizer makes no token of the texts for {name}")
    first = (np.cumsum(sizes, axis=0) - sizes).tolist()
    parts = tuple((path, document, token) for path, (document, token) in zip(shards, first, strict=True))
    header = IndexHeader(spec.dtype, documents, documents)
    return Assembly(prefix, name, header, tokens, spec.vocabulary_size, parts)


def assemble(assembly: Assembly, workers: int, advance: Advance) -> SetContent:
    """Writes `prefix.bin`, `prefix.idx` and `prefix.counts.npy` (int64, how often each id occurs) from shard files.

    Shards are written independently of each other, so memory does not grow with the number of documents.

    Args:
        assembly: the set.
        workers: processes.
        advance: is called with the number of tokens that were written.

    Raises:
        UserError: a worker process died.
    """
    create_set(assembly.prefix, assembly.header, assembly.tokens)
    workers = max(1, min(workers, assembly.tokens // _TOKENS_PER_WORKER))
    step = -(-len(assembly.parts) // (workers * _JOBS_PER_WORKER))
    jobs = [assembly.parts[begin : begin + step] for begin in range(0, len(assembly.parts), step)]
    counts = np.zeros(assembly.vocabulary_size, dtype=np.int64)
    make = partial(_PartWriter, assembly.prefix, assembly.name, assembly.header, assembly.vocabulary_size)
    for found in run_jobs(make, jobs, workers, advance):
        counts += found
    np.save(f"{assembly.prefix}.counts.npy", counts)
    largest = int(np.flatnonzero(counts)[-1])
    dtype = np.dtype(assembly.header.dtype).name
    return SetContent(assembly.prefix, assembly.header.documents, int(counts.sum()), largest, dtype)


class _PartWriter:
    """Writes shards into a set; returns how often each id occurs in them."""

    def __init__(self, prefix: str, name: str, header: IndexHeader, vocabulary_size: int) -> None:
        self._prefix, self._name, self._header, self._vocabulary_size = prefix, name, header, vocabulary_size

    def __call__(self, parts: Sequence[tuple[Path, int, int]], advance: Advance) -> NDArray[Any]:
        counts = np.zeros(self._vocabulary_size, dtype=np.int64)
        for path, document, token in parts:
            with np.load(path, allow_pickle=False) as arrays:
                tokens, lengths = arrays[f"{self._name}_tokens"], arrays[f"{self._name}_lengths"]
            write_documents(self._prefix, self._header, document, token, tokens, lengths)
            counts += np.bincount(tokens, minlength=self._vocabulary_size)
            advance(len(tokens))
        return counts
