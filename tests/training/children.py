"""Runs in processes of their own that can be signalled and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forked import Forked, rank_environments
from tiny_runs import undrawn

# What changes files, under the names of Python's audit events.
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
PATIENCE = 120  # seconds until something that must happen has not happened


class Child:
    """`nld-train` in a process and a process group of its own.

    Args:
        directory: the run's.
        overrides: of the command line.
        kill_before: the process kills itself before this file operation under `checkpoints`, counted from 1; 0: never.
        pause_before: the thread that would do the first operation of this form (a regular expression) sleeps for ever.
        step_seconds: sleeps so long before each step, for a signal to arrive before the last one.
        environment: more variables.

    Attributes:
        log: file with what it prints on both streams.
        operations: file with the operations under `checkpoints`, written when it ends by itself.
    """

    def __init__(
        self,
        directory: Path,
        overrides: Sequence[str],
        kill_before: int = 0,
        pause_before: str | None = None,
        step_seconds: float = 0.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.log = directory.with_name(f"{directory.name}-{time.monotonic_ns()}.log")
        self.operations = self.log.with_suffix(".json")
        words = [f"run.dir={directory}", *overrides]
        request = json.dumps([words, str(self.operations), kill_before, pause_before, step_seconds])
        with self.log.open("a") as log:
            self.process = Forked(
                ["call", "children", "train_watched", request], log, environment={**os.environ, **(environment or {})}
            )

    def wait(self) -> int:
        """Waits for its end; returns its exit code, negative where a signal ended it."""
        code = self.process.poll(PATIENCE)
        if code is None:
            self.process.kill_group()
            raise AssertionError(f"still running:\n{self.output()}")
        return code

    def wait_until(self, happened: Callable[[], bool]) -> bool:
        """Waits until something has happened; False where the process ended before."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < deadline, self.output()
            if self.process.poll(0.001) is not None:
                return happened()
        return True

    def wait_for_step(self, step: int) -> None:
        """Waits until the run has made so many steps."""
        metrics = self.directory / "metrics.jsonl"
        assert self.wait_until(lambda: step == 0 or (metrics.exists() and metrics.read_bytes().count(b"\n") >= step)), (
            self.output()
        )

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self.process.signal(number)

    def signal_group(self, number: int) -> None:
        """Sends a signal to it and to all processes that it has started."""
        self.process.signal_group(number)

    def output(self) -> str:
        """What it has printed, on both streams."""
        return self.log.read_text() if self.log.exists() else ""


def ranks(number: int, directory: Path, overrides: Sequence[str], **of_the_first: Any) -> list[Child]:
    """The processes of one run, as torchrun would start them; the first one has what else `Child` takes."""
    return [
        Child(directory, overrides, environment=environment, **(of_the_first if rank == 0 else {}))
        for rank, environment in enumerate(rank_environments(number))
    ]


def train_watched(
    overrides: list[str], operations: str, kill_before: int, pause_before: str | None, step_seconds: float
) -> int:
    """In the process of a `Child`: trains, and writes down the file operations."""
    done = _watch_files(kill_before, pause_before)
    from nld_train.commands.train import main

    _sleep_before_steps(step_seconds)

    sys.argv = ["nld-train", *overrides]
    with undrawn():
        status = main()
    Path(operations).write_text(json.dumps(done))
    return status


def _sleep_before_steps(seconds: float) -> None:
    from nld_train.training.stages import objective_trainer

    train_step = objective_trainer.train_step

    def slept(*given: Any) -> Any:
        time.sleep(seconds)
        return train_step(*given)

    objective_trainer.train_step = slept


def _watch_files(kill_before: int, pause_before: str | None) -> list[str]:
    """Notes each file operation under `checkpoints`; ends this process, or stops a thread, before one of them."""
    done: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not _concerns_checkpoints(event, arguments):
            return
        done.append(f"{event} {arguments[0]}")
        if len(done) == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        if pause_before is not None and re.match(pause_before, done[-1]):
            time.sleep(10 * PATIENCE)

    sys.addaudithook(watch)
    return done


def _concerns_checkpoints(event: str, arguments: tuple[Any, ...]) -> bool:
    if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:
        return True  # relative to an open folder: only the deletion of a checkpoint does that
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return False
    return isinstance(arguments[0], str | os.PathLike) and "/checkpoints" in str(arguments[0])
