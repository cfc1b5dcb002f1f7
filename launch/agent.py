"""torchrun's agent for a node: `python launch/agent.py TORCHRUN-ARGUMENTS`, with additions for long runs on a cluster.

- SIGUSR1, SIGTERM and SIGINT are passed on to the training processes, which save and exit. torchrun alone is killed by
  the first, and kills its processes 30 seconds after the others, in the middle of a large checkpoint.
- Its exit code is that of the training process that failed first: 75 where the run was saved, 128 + n after signal n.
- It prints which rank that was and why, followed by the end of its error log where it has one.
- It exits when the agent of another node has exited. torchrun alone waits until communication times out.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

SAVED_STATUS = 75
# How long the processes of this node may still run when the agent of another node has exited: they mostly end by
# themselves, and their own error is then reported.
GRACE_SECONDS = 20.0
_LINES = 15


@dataclass
class _Watch:
    """What has happened to the training processes so far.

    Attributes:
        started: whether they were running once.
        save_requested: whether SIGUSR1 was received.
        closed_at: when the agent of another node was first found to have exited.
    """

    started: bool = False
    save_requested: bool = False
    closed_at: float | None = None


_watch = _Watch()


class PeerLostError(Exception):
    """The agent of another node has ended."""


def main(arguments: list[str]) -> int:
    """Runs the training processes of this node; returns the exit status."""
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _forward)
    _watch_other_nodes()
    try:
        run.main(["--signals-to-handle", "SIGHUP,SIGQUIT", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _report(rank, failure)
    except (PeerLostError, RendezvousError) as error:
        print(f"error: {socket.gethostname()}: {error}", file=sys.stderr)
        return 1
    return 0


def _forward(number: int, _frame: FrameType | None) -> None:
    """Passes a signal on to the training processes; before they are started there is nothing to save, and it exits."""
    children = psutil.Process().children()
    _watch.save_requested = _watch.save_requested or number == signal.SIGUSR1
    if not children and not _watch.started:
        sys.exit(SAVED_STATUS if number == signal.SIGUSR1 else 128 + number)
    for child in children:
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _watch_other_nodes() -> None:
    """Makes torchrun's regular query for waiting nodes also detect that another node's agent has exited."""
    query = DynamicRendezvousHandler.num_nodes_waiting

    def num_nodes_waiting(handler: Any) -> int:
        _watch.started = True
        try:
            closed, waiting = handler.is_closed(), query(handler)
        except RendezvousError:  # the node that hosts the rendezvous is gone
            closed, waiting = True, 0
        if not closed:
            return waiting
        if _watch.closed_at is None:
            _watch.closed_at = time.monotonic()
        if time.monotonic() - _watch.closed_at > GRACE_SECONDS:
            raise PeerLostError("ended, because another node has; the reason is in that node's output")
        return 0

    DynamicRendezvousHandler.num_nodes_waiting = num_nodes_waiting  # type: ignore[method-assign, assignment]


def _report(rank: int, failure: ProcessFailure) -> int:
    """Prints which rank failed and why; returns the exit status that goes with it."""
    host = socket.gethostname()
    # A process that has not begun to train has nothing to save, and is killed by the signal.
    if failure.exitcode == -signal.SIGUSR1 and _watch.save_requested:
        print(f"{host}: ended by a signal before the first step; the same command continues it", flush=True)
        return SAVED_STATUS
    if failure.exitcode == SAVED_STATUS:
        print(f"{host}: saved after a signal (exit code {SAVED_STATUS}); the same command continues it", flush=True)
        return SAVED_STATUS
    reason = f"exit code {failure.exitcode}" if failure.exitcode >= 0 else f"killed by {_name(-failure.exitcode)}"
    print(f"error: rank {rank} on {host} (process {failure.pid}) failed first here: {reason}", file=sys.stderr)
    for line in _end_of_log(failure):
        print(f"  | {line}", file=sys.stderr)
    return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end_of_log(failure: ProcessFailure) -> list[str]:
    """The last lines of the process's error log, which is beside its error file where there are logs."""
    log = Path(failure.error_file).with_name("stderr.log")
    if not log.is_file():
        return []
    return log.read_text(errors="replace").splitlines()[-_LINES:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
