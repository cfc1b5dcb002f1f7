"""Jobs spread over worker processes, which report their progress while they work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from nld_train.errors import UserError
from nld_train.processes import exit_with_parent
from nld_train.progress import Advance

J_contra = TypeVar("J_contra", contravariant=True)
J = TypeVar("J")
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_REPORT_SECONDS = 0.2
# Jobs that wait in the pool for each process; the others wait here.
_QUEUED = 4


class Work(Protocol[J_contra, T_co]):
    """What is done with each job."""

    def __call__(self, job: J_contra, advance: Advance, /) -> T_co:
        """Does a job; reports its progress."""


def run_jobs(make: Callable[[], Work[J, T]], jobs: Sequence[J], workers: int, advance: Advance) -> Iterator[T]:
    """Does jobs in worker processes, or in this one where a single process or job is asked for.

    Args:
        make: makes the function that does a job, once in each process; must be picklable, as jobs and results.
        jobs: in the order in which they are begun.
        workers: most processes.
        advance: is called with the progress that the jobs report.

    Yields:
        The results, in any order.

    Raises:
        UserError: raised by a job; or a process died.
    """
    if workers <= 1 or len(jobs) <= 1:
        work = make()
        for job in jobs:
            yield work(job, advance)
        return
    # Spawned, not forked: the parent may have threads of tokenizers, datasets and the progress bar.
    context = multiprocessing.get_context("spawn")
    counter = context.Value(ctypes.c_longlong)
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (make, counter))
    try:
        yield from _results(pool, jobs, _QUEUED * workers, _Progress(counter, advance))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (killed for memory?): run the same command with fewer --workers; what is finished "
            "is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Progress:
    """Passes on how much a shared counter has grown."""

    def __init__(self, counter: Any, advance: Advance) -> None:
        self._counter, self._advance, self._seen = counter, advance, 0

    def __call__(self) -> None:
        now = self._counter.value
        self._advance(now - self._seen)
        self._seen = now


def _results(pool: Executor, jobs: Sequence[Any], queued: int, progress: _Progress) -> Iterator[Any]:
    waiting, running = iter(jobs), set[Future[Any]]()
    while True:
        with _interrupts_held():
            while len(running) < queued and (job := next(waiting, None)) is not None:
                running.add(pool.submit(_do, job))
            if not running:
                return
            done, running = wait(running, _REPORT_SECONDS, FIRST_COMPLETED)
            progress()
        for future in done:
            yield future.result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C, which reaches every process of a terminal, has its effect in this one at the end, and in workers none.

    An interrupt in the middle could leave a lock locked, that of a future or of the progress, for which the pool or its
    workers would then wait for ever. Workers that start in here inherit the blocked signal. In this process another
    thread can receive it nevertheless, so that the handler, which Python runs in the main thread, does nothing but note
    it.
    """
    if threading.current_thread() is not threading.main_thread():  # it receives no interrupts
        yield
        return
    noted: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)


_work: Work[Any, Any] | None = None
_counter: Any = None


def _start(make: Callable[[], Work[Any, Any]], counter: Any) -> None:
    global _work, _counter
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism
    exit_with_parent()
    _counter = counter
    _work = make()


def _do(job: Any) -> Any:
    assert _work is not None
    return _work(job, _count)


def _count(amount: int) -> None:
    with _counter.get_lock():
        _counter.value += amount
