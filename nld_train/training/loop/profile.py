"""Profiles of some optimizer steps, for the keys below `execution.profile`: a trace, a memory snapshot, NVTX ranges.

The parts of a step are named by `profiling.profiled`, those inside Megatron by its timers (`training.loop.timers`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from nld_train.config.schema import Config, ProfileConfig
from nld_train.errors import UserError, system_error
from nld_train.profiling import annotating, profiled

# Allocations and frees that a memory snapshot keeps, the last ones.
_MEMORY_ENTRIES = 1_000_000


class NoProfile:
    """A run, or a process of one, of which no profile is taken."""

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """See `StepProfile.step`: nothing."""
        del number
        yield

    def close(self) -> None:
        """See `StepProfile.close`: nothing."""


class StepProfile(NoProfile):
    """Profiles of the steps `first_step` to `last_step` of a run, as far as this start of it makes them.

    Args:
        settings: what is recorded.
        first: the first step.
        directory: `run.dir`; the files are in its folder `profile`.
        rank: of this process.
        device: of this process.
    """

    def __init__(self, settings: ProfileConfig, first: int, directory: Path, rank: int, device: torch.device) -> None:
        self._first, self._last = first, settings.last_step or first
        self._folder, self._rank = directory / "profile", rank
        self._recorders = _recorders(settings, device)
        self._began: int | None = None
        self._until = 0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around everything that belongs to a step: waiting for data, the update, hooks, saving.

        Args:
            number: of the step in the run.
        """
        if number == self._first - 1:
            # What recording sets up is not part of the first step that is recorded.
            for recorder in self._recorders:
                recorder.prepare()
        if not self._first <= number <= self._last:
            yield
            return
        self._begin(number)
        self._until = number
        try:
            with annotating(self._annotate), profiled(f"ProfilerStep#{number}"):
                yield
        except BaseException:
            self.close()  # what led to it, such as memory that ran out
            raise
        if number == self._last:
            self.close()

    def _begin(self, number: int) -> None:
        if self._began is not None:
            return
        self._began = number
        for recorder in self._recorders:
            recorder.start()

    def _annotate(self, name: str) -> AbstractContextManager[Any]:
        ranges = ExitStack()
        for recorder in self._recorders:
            recorder.enter(ranges, name)
        return ranges

    def close(self) -> None:
        """Ends the recording and writes its files, unless that has been done; a failure is a warning."""
        if self._began is None:
            return
        path = self._folder / f"rank_{self._rank}.steps_{self._began}_to_{self._until}"
        self._began, self._first = None, sys.maxsize
        for recorder in self._recorders:
            recorder.stop()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for recorder in self._recorders:
                recorder.write(path)
        except OSError as error:
            print(f"warning: {path}: {system_error(error)}; the profile is not complete", file=sys.stderr)


class _Recorder:
    """One kind of profile. What it does not need it leaves out."""

    def prepare(self) -> None:
        """Called before the step before the first one, if this start makes it."""

    def start(self) -> None:
        """Called before the first step."""

    def enter(self, ranges: ExitStack, name: str) -> None:
        """Enters its range of this name, if it has ranges."""

    def stop(self) -> None:
        """Called after the last step."""

    def write(self, path: Path) -> None:
        """Writes its files; `path` is theirs without a suffix."""


class _Trace(_Recorder):
    """torch's profiler: kernels and operators over time, for Perfetto, chrome://tracing or TensorBoard's plugin."""

    def __init__(self, device: torch.device) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities, record_shapes=True)
        self._prepared = False

    def prepare(self) -> None:
        self._profile.prepare_trace()
        self._prepared = True

    def start(self) -> None:
        if not self._prepared:
            self._profile.prepare_trace()
        self._profile.start_trace()

    def enter(self, ranges: ExitStack, name: str) -> None:
        ranges.enter_context(torch.profiler.record_function(name))

    def stop(self) -> None:
        self._profile.stop_trace()

    def write(self, path: Path) -> None:
        self._profile.export_chrome_trace(f"{path}.pt.trace.json.gz")


class _Memory(_Recorder):
    """Every allocation of the device's memory with its Python stack, for torch's memory visualiser."""

    def start(self) -> None:
        torch.cuda.memory._record_memory_history(max_entries=_MEMORY_ENTRIES)

    def write(self, path: Path) -> None:
        # Before the recording ends, which deletes it.
        torch.cuda.memory._dump_snapshot(f"{path}.memory.pickle")
        torch.cuda.memory._record_memory_history(enabled=None)


class _Nvtx(_Recorder):
    """NVTX ranges, those of Megatron's layers too, and what `nsys --capture-range=cudaProfilerApi` waits for."""

    def start(self) -> None:
        from megatron.core.utils import configure_nvtx_profiling

        configure_nvtx_profiling(True)
        torch.cuda.profiler.start()

    def enter(self, ranges: ExitStack, name: str) -> None:
        ranges.enter_context(torch.cuda.nvtx.range(name))

    def stop(self) -> None:
        from megatron.core.utils import configure_nvtx_profiling

        torch.cuda.profiler.stop()
        configure_nvtx_profiling(False)


def _recorders(settings: ProfileConfig, device: torch.device) -> list[_Recorder]:
    found: list[_Recorder] = []
    if settings.trace:
        found.append(_Trace(device))
    if settings.memory:
        found.append(_Memory())
    if settings.nvtx:
        found.append(_Nvtx())
    return found


def make_profile(config: Config, rank: int, device: torch.device) -> NoProfile:
    """The profile of this process, for the keys below `execution.profile`.

    Raises:
        UserError: on every rank, if something is to be recorded that only a GPU has.
    """
    settings = config.execution.profile
    if settings.first_step is None:
        return NoProfile()
    for name in ("memory", "nvtx"):
        if getattr(settings, name) and device.type != "cuda":
            raise UserError(f"execution.profile.{name}=true: needs a CUDA device; set false")
    if rank not in settings.ranks:
        return NoProfile()
    return StepProfile(settings, settings.first_step, Path(config.run.dir), rank, device)
