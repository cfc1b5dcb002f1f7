"""Runs steps, several at a time, each in its own processes, and records each that is finished.

Killed at any moment and started again, it goes on: finished steps are not repeated, and a training continues from its
newest checkpoint.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.paper.steps import Step, in_order
from benchmarks.row_process import ROOT, Stop, end_groups
from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.locks import LockState, take_lock
from nld_train.revision import git_revision

_POLL = 0.2
# Seconds that a training has to save a checkpoint after a signal.
_GRACE = 120.0
_FOLDERS = ("data", "runs", "prompts", "measured", "steps", "logs")


@dataclass
class Running:
    """A step that runs: its process, the commands after the current one, and when it began."""

    step: Step
    left: list[list[str]]
    process: subprocess.Popen[bytes]
    begin: float = field(default_factory=time.monotonic)


@dataclass
class Runner:
    """Runs steps in their order, as many at a time as `jobs`.

    Attributes:
        folder: of all outputs.
        jobs: steps at a time.
        launch: the beginning of a command line, before the module's name.
        say: prints a line.
    """

    folder: Path
    jobs: int
    launch: Sequence[str] = (sys.executable, "-m")
    say: Callable[[str], None] = print

    def run(self, wanted: list[Step], stop: Stop) -> list[Step]:
        """Runs what is not finished of the steps and of those that they depend on; returns those that failed."""
        steps = in_order(wanted)
        revision = git_revision()
        waiting = [step for step in steps if not step.finished(self.folder)]
        self.say(f"{len(steps) - len(waiting)} of {len(steps)} steps are finished")
        running: list[Running] = []
        failed: list[Step] = []
        try:
            while (waiting or running) and stop.number is None:
                self._start(waiting, running)
                if not running:  # all that is left depends on what failed
                    break
                time.sleep(_POLL)
                for each in [one for one in running if one.process.poll() is not None]:
                    running.remove(each)
                    self._ended(each, running, failed, revision)
                    done = len(steps) - len(waiting) - len(running) - len(failed)
                    self.say(f"{done} of {len(steps)} steps, {len(failed)} failed")
        finally:
            # Trainings save a checkpoint.
            end_groups([each.process for each in running], _GRACE)
        return failed

    def _start(self, waiting: list[Step], running: list[Running]) -> None:
        while len(running) < self.jobs:
            ready = (step for step in waiting if all(before.finished(self.folder) for before in step.after))
            if (step := next(ready, None)) is None:
                return
            waiting.remove(step)
            self._log(step).unlink(missing_ok=True)
            first, *left = step.command_lines(self.folder)
            running.append(Running(step, left, self._process(step, first)))
            self.say(f"{step.name}: begins")

    def _ended(self, ended: Running, running: list[Running], failed: list[Step], revision: str | None) -> None:
        """A process has ended: the step's next one is started, or its record is written."""
        step, seconds = ended.step, time.monotonic() - ended.begin
        if ended.process.returncode != 0:
            failed.append(step)
            self.say(f"{step.name}: failed, see {self._log(step)}")
        elif ended.left:
            first, *left = ended.left
            running.append(Running(step, left, self._process(step, first), ended.begin))
        else:
            content = {"commands": step.commands, "seconds": round(seconds, 1), "git_revision": revision}
            write_atomically(step.record(self.folder), json.dumps(content, indent=1) + "\n")
            self.say(f"{step.name}: finished after {seconds:.0f} s")

    def _process(self, step: Step, words: list[str]) -> subprocess.Popen[bytes]:
        threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        with self._log(step).open("a") as log:
            return subprocess.Popen(
                [*self.launch, *words],
                cwd=ROOT,
                env={"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _log(self, step: Step) -> Path:
        return self.folder / "logs" / f"{step.name}.log"


def _end_with_parent() -> None:
    """The process gets SIGTERM when its parent ends, however that happens (Linux; elsewhere it runs on)."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Makes the folders, and keeps another program from running in them.

    Raises:
        UserError: one runs there already, or the folder cannot be made.
    """
    try:
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        path = folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"--folder {folder}: cannot be written ({error.strerror})") from error
    try:
        if take_lock(descriptor, path) is LockState.HELD:
            raise UserError(f"--folder {folder}: another benchmarks.paper runs there")
        # Its processes do not hold the lock when it has ended.
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        yield
    finally:
        os.close(descriptor)
