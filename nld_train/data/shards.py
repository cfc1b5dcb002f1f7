"""Encodes the shards of a source in worker processes. A finished shard is a file, so a run can be continued."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nld_train.data.readers import Document, documents
from nld_train.data.sources import Piece, SourceSettings
from nld_train.data.tokenizer import Encoder, EncoderSpec
from nld_train.errors import UserError
from nld_train.processes import exit_with_parent

_GROUP_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class ShardJob:
    """Settings of all shards of a run.

    Attributes:
        settings: how sources are read.
        spec: the tokenizer.
        validation: fraction of documents that is held out, 0 for none.
        folder: of the finished shards.
    """

    settings: SourceSettings
    spec: EncoderSpec
    validation: float
    folder: Path

    def path(self, number: int) -> Path:
        """The finished shard's file."""
        return self.folder / f"shard-{number:08d}.npz"


def is_held_out(document: Document, fraction: float) -> bool:
    """Whether a document belongs to validation: a hash of its key below `fraction`, the same on every machine."""
    digest = hashlib.blake2b(document.key.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def encode_shards(job: ShardJob, shards: Sequence[list[Piece]], workers: int) -> Iterator[int]:
    """Encodes the shards that are not finished yet; yields each one's number when it is done, in any order.

    Raises:
        UserError: a document cannot be read or encoded, or a worker process died. Finished shards stay.
    """
    if workers <= 1 or len(shards) <= 1:
        encoder = Encoder(job.spec)
        for number, pieces in enumerate(shards):
            if not job.path(number).exists():
                _encode_shard(job, encoder, number, pieces)
            yield number
        return
    yield from (number for number in range(len(shards)) if job.path(number).exists())
    missing = [number for number in range(len(shards)) if not job.path(number).exists()]
    # Spawned, not forked: the parent may have threads of tokenizers, datasets and the progress bar.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, max(1, len(missing))), context, _start_worker, (job,))
    try:
        with _interrupts_blocked():
            futures = {pool.submit(_work, number, shards[number]): number for number in missing}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (killed for memory?): run the same command with fewer --workers; finished shards "
            "are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal. Workers that start while it is blocked inherit the blocked signal;
    the parent, which handles it for all, receives it afterwards."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


_worker: tuple[ShardJob, Encoder] | None = None


def _start_worker(job: ShardJob) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism
    exit_with_parent()
    _worker = (job, Encoder(job.spec))


def _work(number: int, pieces: list[Piece]) -> None:
    assert _worker is not None
    job, encoder = _worker
    _encode_shard(job, encoder, number, pieces)


def _encode_shard(job: ShardJob, encoder: Encoder, number: int, pieces: list[Piece]) -> None:
    """Encodes one shard into `{train,validation}_{tokens,lengths}` of one file, written under another name first."""
    encoded: dict[bool, list[NDArray[Any]]] = {False: [], True: []}
    for group in _groups(pieces, job.settings):
        for document, ids in zip(group, encoder.encode([document.text for document in group]), strict=True):
            encoded[is_held_out(document, job.validation)].append(ids)
    arrays: dict[str, NDArray[Any]] = {}
    for held_out, name in ((False, "train"), (True, "validation")):
        texts = encoded[held_out]
        arrays[f"{name}_tokens"] = np.concatenate([np.empty(0, job.spec.dtype), *texts]).astype(job.spec.dtype)
        arrays[f"{name}_lengths"] = np.array([len(text) for text in texts], dtype=np.int64)
    temporary = job.path(number).with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, job.path(number))
    finally:
        temporary.unlink(missing_ok=True)


def _groups(pieces: Sequence[Piece], settings: SourceSettings) -> Iterator[list[Document]]:
    """Documents in groups of a few million characters."""
    group: list[Document] = []
    characters = 0
    for piece in pieces:
        for document in documents(piece, settings):
            group.append(document)
            characters += len(document.text)
            if characters >= _GROUP_CHARACTERS:
                yield group
                group, characters = [], 0
    if group:
        yield group
