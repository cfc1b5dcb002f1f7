"""The packing of a chat set: which conversations are in which sample, computed once and kept in files.

A pure function of the set, `ConversationPacking` and the seed. The conversations are measured in file order, permuted,
and cut into windows, each of which is packed on its own, so that memory does not grow with the set and processes share
the work. `packing_files` describes the result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nld_train.data.bins import pack
from nld_train.data.chat_set import ChatSet
from nld_train.data.conversation_lengths import (
    LENGTHS,
    ConversationPacking,
    PackingFacts,
    Tally,
    measure_evenly,
    measure_range,
)
from nld_train.data.packed import quick_fingerprint
from nld_train.data.packing_files import (
    CONVERSATION_DTYPE,
    CONVERSATIONS,
    FACTS,
    SAMPLES,
    digest_of,
    intact_facts,
    packing_directory,
    packing_key,
)
from nld_train.data.permutation import permute_many, round_keys
from nld_train.data.workers import run_jobs
from nld_train.errors import UserError
from nld_train.files import synchronise_all
from nld_train.progress import Advance

# A job takes half a second. Below some jobs per process, starting processes takes longer.
_JOB_CONVERSATIONS, _JOB_TOKENS = 1 << 18, 1 << 28
_JOBS_PER_WORKER, _MOST_WORKERS = 4, 8
# Each window has a sample that is not full, so that it is not small; nor is it large, because it is in memory.
_WINDOW_SAMPLES, _SMALLEST_WINDOW, _LARGEST_WINDOW = 256, 1 << 12, 1 << 16


def make_packing(
    prefix: str,
    packing: ConversationPacking,
    seed: int,
    folder: str | os.PathLike[str],
    workers: int | None = None,
    advance: Advance = lambda count: None,
) -> PackingFacts:
    """Makes the packing of a set, unless it is there already. One process calls this before others open it.

    Args:
        prefix: path of the set without suffix.
        packing: how conversations become samples.
        seed: the run's seed.
        folder: of the packings of a run.
        workers: most processes (default: as many as are worth starting, at most 8); decides nothing but the time.
        advance: is called with the number of conversations that were measured or packed; each counts twice.

    Raises:
        UserError: a file of the set is missing, truncated or damaged; no conversation can be used; or a process died.
        OSError: the folder cannot be written.
    """
    chat, directory = ChatSet(prefix), packing_directory(prefix, folder, packing_key(prefix, packing, seed))
    if (facts := intact_facts(directory)) is not None:
        advance(2 * chat.documents)
        return facts
    shutil.rmtree(directory, ignore_errors=True)
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        facts = _write(_Making(prefix, packing, seed, temporary), chat, partial(_run, workers, advance))
        synchronise_all(temporary)
        os.replace(temporary, directory)
    except UserError as error:
        if isinstance(error.__cause__, BrokenProcessPool):
            raise UserError(
                f"a process that packs {prefix} died (killed for memory?): give the job more memory"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def estimate_facts(prefix: str, packing: ConversationPacking) -> PackingFacts:
    """The facts of a packing of some thousand conversations that are spread evenly over a set; of all of a smaller one.

    Nothing is written. Raises as `make_packing`, where that can be seen from these conversations.
    """
    lengths, tally = measure_evenly(prefix, packing)
    _refuse_nothing(prefix, packing, tally)
    used = lengths[lengths["clean"] > 0]
    samples = pack(used["clean"], used["noisy"], packing.sequence_length, packing.noisy_length)
    return _facts(packing, tally, len(samples))


@dataclass(frozen=True)
class _Making:
    """A packing that is being made in a folder of its own."""

    prefix: str
    packing: ConversationPacking
    seed: int
    folder: Path

    @property
    def lengths(self) -> Path:
        """The measured conversations, in file order."""
        return self.folder / "lengths.bin"

    def part(self, job: int, name: str) -> Path:
        """A part of a file of the result."""
        return self.folder / f"{job}.{name}"


def _write(making: _Making, chat: ChatSet, run: Any) -> PackingFacts:
    """Writes the files of a packing; returns its facts."""
    with open(making.lengths, "wb") as stream:
        stream.truncate(chat.documents * LENGTHS.itemsize)
    tally = Tally()
    pieces = max(-(-chat.documents // _JOB_CONVERSATIONS), -(-chat.tokens // _JOB_TOKENS))
    size = -(-chat.documents // pieces)
    for counts in run(partial(_Measure, making), _ranges(chat.documents, size)):
        tally.add(counts)
    _refuse_nothing(making.prefix, making.packing, tally)
    window = _window_size(making.packing, tally)
    jobs = list(enumerate(_ranges(chat.documents, max(1, _JOB_CONVERSATIONS // window) * window)))
    samples = sum(run(partial(_PackWindows, making, window), jobs))
    _join(making, len(jobs))
    making.lengths.unlink()
    facts = _facts(making.packing, tally, samples)
    record = asdict(facts) | {"digest": digest_of(making.folder)}
    (making.folder / FACTS).write_text(json.dumps(record, indent=2) + "\n")
    return facts


def _run(workers: int | None, advance: Advance, make: Any, jobs: Sequence[Any]) -> Iterator[Any]:
    """`run_jobs` in as many processes as are given, or worth starting."""
    if workers is None:
        workers = min(_MOST_WORKERS, len(os.sched_getaffinity(0)), len(jobs) // _JOBS_PER_WORKER)
    return run_jobs(make, jobs, workers, advance)


def _ranges(count: int, size: int) -> list[range]:
    return [range(begin, min(count, begin + size)) for begin in range(0, count, size)]


def _window_size(packing: ConversationPacking, tally: Tally) -> int:
    """Conversations of a window: as many as fill some hundred samples."""
    wanted = _WINDOW_SAMPLES * packing.sequence_length * tally.used // tally.clean_tokens
    return max(_SMALLEST_WINDOW, min(_LARGEST_WINDOW, wanted))


def _refuse_nothing(prefix: str, packing: ConversationPacking, tally: Tally) -> None:
    if tally.used:
        return
    if tally.shortest is None:
        raise UserError(f"{prefix}: none of {tally.conversations:,} conversations has an answer to train on")
    raise UserError(
        f"batch.sequence_length={packing.sequence_length}: must be at least {tally.shortest}, the length of the "
        f"shortest of the {tally.conversations:,} conversations in {prefix}"
    )


def _facts(packing: ConversationPacking, tally: Tally, samples: int) -> PackingFacts:
    counts = {name: value for name, value in asdict(tally).items() if name != "shortest"}
    return PackingFacts(
        **counts, samples=samples, sequence_length=packing.sequence_length, noisy_length=packing.noisy_length
    )


class _Measure:
    """Measures a range of conversations."""

    def __init__(self, making: _Making) -> None:
        self._making = making

    def __call__(self, documents: range, advance: Advance) -> Tally:
        """Writes their lengths; returns what becomes of them."""
        making, tally = self._making, Tally()
        with open(making.lengths, "r+b") as stream:
            stream.seek(documents.start * LENGTHS.itemsize)
            for lengths, counts in measure_range(making.prefix, making.packing, documents, advance):
                stream.write(lengths.data)
                tally.add(counts)
        return tally


class _PackWindows:
    """Packs a range of permuted conversations, window by window."""

    def __init__(self, making: _Making, window: int) -> None:
        self._making, self._window = making, window
        self._lengths = np.memmap(making.lengths, LENGTHS, mode="r")
        self._keys = round_keys(making.seed, f"{quick_fingerprint(making.prefix)}/packing", 0)

    def __call__(self, job: tuple[int, range], advance: Advance) -> int:
        """Writes the conversations and the sizes of the samples of a range; returns the number of samples."""
        number, indices = job
        samples = 0
        making = self._making
        with (
            open(making.part(number, CONVERSATIONS), "wb") as conversations,
            open(making.part(number, SAMPLES), "wb") as sizes,
        ):
            for begin in range(indices.start, indices.stop, self._window):
                end = min(indices.stop, begin + self._window)
                samples += self._pack(np.arange(begin, end), conversations, sizes)
                advance(end - begin)
        return samples

    def _pack(self, indices: NDArray[np.int64], conversations: BinaryIO, sizes: BinaryIO) -> int:
        lengths = self._lengths[permute_many(indices, len(self._lengths), self._keys)]
        lengths = lengths[lengths["clean"] > 0]
        packing = self._making.packing
        samples = pack(lengths["clean"], lengths["noisy"], packing.sequence_length, packing.noisy_length)
        order = [each for sample in samples for each in sample]
        conversations.write(lengths[["start", "length"]][order].astype(CONVERSATION_DTYPE).data)
        sizes.write(np.array([len(sample) for sample in samples], np.int64).data)
        return len(samples)


def _join(making: _Making, jobs: int) -> None:
    """Joins the parts of all jobs."""
    with open(making.folder / CONVERSATIONS, "wb") as joined, open(making.folder / SAMPLES, "wb") as borders:
        total = np.zeros(1, np.int64)
        borders.write(total.data)
        for job in range(jobs):
            conversations, sizes = (making.part(job, name) for name in (CONVERSATIONS, SAMPLES))
            with open(conversations, "rb") as part:
                shutil.copyfileobj(part, joined)
            ends = total + np.cumsum(np.fromfile(sizes, np.int64))
            borders.write(ends.data)
            total = ends[-1:] if len(ends) else total
            conversations.unlink()
            sizes.unlink()
