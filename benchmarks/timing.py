"""Time and memory of functions that run repeatedly on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed._tools.mem_tracker import MemTracker

Work = Callable[[], Any]
# Creates the context in which a function runs.
ContextFactory = Callable[[], AbstractContextManager[Any]]


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    works: Mapping[str, Work],
    device: torch.device,
    repeats: int,
    warmup: int = 1,
    contexts: Mapping[str, ContextFactory] | None = None,
) -> dict[str, list[float]]:
    """Times several functions round by round, so that a change in the machine's speed affects all alike.

    Args:
        works: the functions by name.
        device: device on which they run.
        repeats: number of timed rounds.
        warmup: number of rounds before, which are not timed.
        contexts: contexts in which some of them run; entering and leaving is not timed.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(warmup + repeats):
        for name, work in works.items():
            with (contexts or {}).get(name, nullcontext)():
                synchronize(device)
                begin = time.perf_counter()
                work()
                synchronize(device)
                if round_number >= warmup:
                    found[name].append(time.perf_counter() - begin)
    return found


def reset_peak_memory(device: torch.device) -> None:
    """Resets the peak: of the device's memory, or on a CPU of this process's resident memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The peak in bytes since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def extra_memory(work: Work, device: torch.device) -> int:
    """Peak bytes of a function beyond those allocated before it.

    On a CPU only tensors are counted, so that the rest of the process does not matter; memory that kernels allocate
    internally is not counted.
    """
    if device.type == "cpu":
        with (tracker := MemTracker()):
            work()
        return int(tracker.get_tracker_snapshot("peak")[device]["Total"])
    before = torch.cuda.memory_allocated(device)
    reset_peak_memory(device)
    work()
    synchronize(device)
    return peak_memory(device) - before
