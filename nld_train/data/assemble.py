"""Joins finished shards, in order, into one Megatron `.bin/.idx`, and counts every id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nld_train.data.answer_bits import ANSWERS, TURNS, write_answer_bits
from nld_train.data.pictures.store import PictureCounts, ShardPictures, join_pictures
from nld_train.data.shards import pictures_of, shard_size
from nld_train.data.token_index import IndexHeader, create_set, write_documents
from nld_train.data.tokenizer import EncoderSpec
from nld_train.data.workers import run_jobs
from nld_train.errors import UserError
from nld_train.progress import Advance

# Below this starting processes takes longer than writing.
_TOKENS_PER_WORKER = 1 << 24
# Each job returns the counts of a whole vocabulary, so there are few.
_JOBS_PER_WORKER = 8
# Files of bits, and the arrays of shards of which they are made.
_BITS = {ANSWERS: "answers", TURNS: "turns"}


@dataclass(frozen=True)
class SetContent:
    """Content of the written files: prefix, documents, tokens, the largest id and the tokens' numpy type."""

    prefix: str
    documents: int
    tokens: int
    largest_id: int
    dtype: str
    chat: AnswerCounts | None = None
    pictures: PictureCounts | None = None


@dataclass(frozen=True)
class AnswerCounts:
    """The answers of conversations.

    Attributes:
        tokens: of all answers.
        answers: number of them.
        longest: tokens of the longest conversation.
        ends: the ids with which answers end.
        left_out: rows without an answer.
        bad: rows that are no conversation, or cannot be encoded.
    """

    tokens: int = 0
    answers: int = 0
    longest: int = 0
    ends: frozenset[int] = frozenset()
    left_out: int = 0
    bad: int = 0

    def __add__(self, other: AnswerCounts) -> AnswerCounts:
        return AnswerCounts(
            tokens=self.tokens + other.tokens,
            answers=self.answers + other.answers,
            longest=max(self.longest, other.longest),
            ends=self.ends | other.ends,
            left_out=self.left_out + other.left_out,
            bad=self.bad + other.bad,
        )


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
        chat: whether the documents are conversations.
        pictures: whether these may have pictures.
    """

    prefix: str
    name: str
    header: IndexHeader
    tokens: int
    vocabulary_size: int
    parts: tuple[tuple[Path, int, int], ...]
    chat: bool = False
    pictures: bool = False


def plan_assembly(
    prefix: str, name: str, shards: Sequence[Path], spec: EncoderSpec, chat: bool = False, pictures: bool = False
) -> Assembly:
    """Finds where each shard belongs in a set.

    Args:
        prefix: path of the result without suffix.
        name: which set of the shards: `train` or `validation`.
        shards: shard files in order.
        spec: the tokenizer.
        chat: whether the documents are conversations.
        pictures: whether these may have pictures.

    Raises:
        UserError: no shard contains a token.
    """
    sizes = np.array([shard_size(path, name) for path in shards], dtype=np.int64)
    documents, tokens = (int(total) for total in sizes.sum(axis=0))
    if not tokens:
        nothing = (
            "no conversation has an answer that is learned" if chat else "the tokenizer makes no token of the texts"
        )
        raise UserError(f"{nothing} for {name}")
    first = (np.cumsum(sizes, axis=0) - sizes).tolist()
    parts = tuple((path, document, token) for path, (document, token) in zip(shards, first, strict=True))
    header = IndexHeader(spec.dtype, documents, documents)
    return Assembly(prefix, name, header, tokens, spec.vocabulary_size, parts, chat, pictures)


def assemble(assembly: Assembly, workers: int, advance: Advance) -> SetContent:
    """Writes `prefix.bin`, `prefix.idx`, `prefix.counts.npy` (int64, how often each id occurs), and for conversations
    `prefix.answers.bin` and `prefix.turns.bin` from shard files; and the files of their pictures (`pictures.store`).

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
    answers = AnswerCounts()
    for found, found_answers in run_jobs(partial(_PartWriter, replace(assembly, parts=())), jobs, workers, advance):
        counts += found
        answers += found_answers
    for suffix, kind in _BITS.items() if assembly.chat else ():
        arrays = (_array(path, f"{assembly.name}_{kind}") for path, *_ in assembly.parts)
        write_answer_bits(assembly.prefix, arrays, suffix)
    np.save(f"{assembly.prefix}.counts.npy", counts)
    largest = int(np.flatnonzero(counts)[-1])
    dtype = np.dtype(assembly.header.dtype).name
    return SetContent(
        prefix=assembly.prefix,
        documents=assembly.header.documents,
        tokens=int(counts.sum()),
        largest_id=largest,
        dtype=dtype,
        chat=answers if assembly.chat else None,
        pictures=_join_pictures(assembly) if assembly.pictures else None,
    )


def _join_pictures(assembly: Assembly) -> PictureCounts:
    shards = [
        ShardPictures(
            path=pictures_of(path, assembly.name),
            written=_array(path, f"{assembly.name}_written"),
            occurrences=_array(path, f"{assembly.name}_occurrences"),
            first_token=token,
        )
        for path, _, token in assembly.parts
    ]
    return join_pictures(assembly.prefix, shards)


def _array(path: Path, name: str) -> NDArray[Any]:
    """One array of a shard; the others are not read."""
    with np.load(path, allow_pickle=False) as arrays:
        array: NDArray[Any] = arrays[name]
    return array


class _PartWriter:
    """Writes shards into a set; returns how often each id occurs in them, and what is in their answers."""

    def __init__(self, assembly: Assembly) -> None:
        self._set = assembly

    def __call__(
        self, parts: Sequence[tuple[Path, int, int]], advance: Advance
    ) -> tuple[NDArray[np.int64], AnswerCounts]:
        counts, answers = np.zeros(self._set.vocabulary_size, dtype=np.int64), AnswerCounts()
        for path, document, token in parts:
            with np.load(path, allow_pickle=False) as arrays:
                of = {name.removeprefix(f"{self._set.name}_"): arrays[name] for name in self._names(arrays)}
            write_documents(self._set.prefix, self._set.header, document, token, of["tokens"], of["lengths"])
            counts += np.bincount(of["tokens"], minlength=self._set.vocabulary_size)
            if self._set.chat:
                answers += _answer_counts(of["tokens"], of["lengths"], of["answers"])
                answers += AnswerCounts(left_out=int(of["left_out"].sum()), bad=int(of["bad"].sum()))
            advance(len(of["tokens"]))
        return counts, answers

    def _names(self, arrays: Any) -> list[str]:
        return [name for name in arrays.files if name.startswith(f"{self._set.name}_")]


def _answer_counts(tokens: NDArray[Any], lengths: NDArray[np.int64], answers: NDArray[np.bool_]) -> AnswerCounts:
    """The answers of a shard: maximal runs within a document."""
    last = np.zeros(len(tokens), dtype=bool)
    last[np.cumsum(lengths) - 1] = True
    ends = answers & (last | ~np.append(answers[1:], False))
    return AnswerCounts(
        tokens=int(answers.sum()),
        answers=int(ends.sum()),
        longest=int(lengths.max(initial=0)),
        ends=frozenset(np.unique(tokens[ends]).tolist()),
    )
