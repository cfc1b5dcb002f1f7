"""The micro-batches of each optimizer step, read by this process or by workers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.util import get_temp_dir
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from nld_train.data.collate import stack
from nld_train.data.samples import Sample
from nld_train.errors import UserError
from nld_train.processes import exit_with_parent


def sample_indices(step: int, global_size: int, micro_size: int, rank: int, size: int) -> list[list[int]]:
    """The sample indices of one data-parallel rank in one optimizer step, by micro-batch.

    Micro-batch m of rank r has the indices `step * global_size + m * micro_size * size + r * micro_size + j`.
    """
    begin = step * global_size
    starts = range(begin + rank * micro_size, begin + global_size, micro_size * size)
    return [list(range(start, start + micro_size)) for start in starts]


class _MicroBatches(Dataset[Any]):
    """Micro-batches by their sample indices. A `UserError` is returned as an item: a worker process can send that."""

    def __init__(self, samples: Dataset[Sample], collate: Callable[[list[Sample]], Any]) -> None:
        self.samples = samples
        self.collate = collate

    def __getitem__(self, indices: list[int]) -> Any:
        try:
            return self.collate([self.samples[index] for index in indices])
        except UserError as error:
            return error


class _SampleIndicesByStep:
    """Sampler: lists of sample indices, one per micro-batch, step after step."""

    def __init__(self, steps: range, global_size: int, micro_size: int, rank: int, size: int) -> None:
        self.steps = steps
        self.layout = (global_size, micro_size, rank, size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from sample_indices(step, *self.layout)


def batches(
    samples: Dataset[Sample],
    *,
    first_step: int,
    last_step: int,
    global_size: int,
    micro_size: int,
    rank: int = 0,
    size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    collate: Callable[[list[Sample]], Any] = stack,
) -> Iterator[list[Any]]:
    """The micro-batches of one data-parallel rank, step after step.

    Args:
        samples: the samples by sample index, e.g. `TrainingSamples`.
        first_step: first optimizer step of the stage to yield, from 0.
        last_step: the step at which to stop, not yielded itself.
        global_size: samples per optimizer step, a multiple of `micro_size * size`.
        micro_size: samples per micro-batch.
        rank: data-parallel rank.
        size: data-parallel size.
        workers: reader processes; 0 reads in this process.
        pin_memory: page-locked tensors for faster copies to a GPU; needs one.
        collate: makes a micro-batch of samples, in the reader; see `StageTrainer.collate`.

    Yields:
        For each step a list of what `collate` makes of the samples of each micro-batch: by default their tensors
        stacked, `[micro_size, ...]`; `sample_index` is int64 `[micro_size]`.

    Raises:
        UserError: a sample is refused, or a reader process died.
    """
    if global_size % (micro_size * size):
        raise UserError(
            f"batch.global_size = {global_size} must be a multiple of batch.micro_size x data-parallel size = "
            f"{micro_size} x {size}"
        )
    per_step = global_size // (micro_size * size)
    loader = DataLoader(
        _MicroBatches(samples, collate),
        sampler=_SampleIndicesByStep(range(first_step, last_step), global_size, micro_size, rank, size),
        batch_size=None,  # an item is a whole micro-batch already
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )
    micro_batches = _without_errors(loader)
    for _ in range(first_step, last_step):
        yield [next(micro_batches) for _ in range(per_step)]


def _without_errors(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's micro-batches; an error of a worker becomes a `UserError`."""
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a data worker died (killed for memory?): give the job more memory, or lower data.workers (0 reads in the "
            "training process)"
        ) from error


def _start_worker(_worker: int) -> None:
    """Makes a worker end with the training process, whatever ends that, and ignore its first SIGTERM.

    Torch would end it on that, but launchers send one to all processes of a job (see `preload`). The second ends it:
    the training process sends it to a worker that does not exit by itself. The fork server and Python's resource
    tracker, which removes semaphores, end with the last process that holds their pipes, so with the last worker.
    """
    exit_with_parent()
    signal.signal(signal.SIGTERM, lambda number, _frame: signal.signal(number, signal.SIG_DFL) and None)


def _worker_context() -> Any:
    """Workers start from a fork server: the training process has CUDA and NCCL threads, which do not survive a fork,
    and a spawned worker would import Megatron-Core for seconds, which the server does once for all of them."""
    _start_resource_tracker()
    # Workers put their sockets into this process's folder, if there is one; the server removes it (`preload`).
    get_temp_dir()
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "nld_train.data.preload"])
    return context


def _start_resource_tracker() -> None:
    """Starts Python's resource tracker with SIGUSR1 blocked: it ignores SIGINT and SIGTERM by itself, but Slurm can
    send SIGUSR1 to all processes of a job, and without their tracker the fork server and its workers print errors."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
