"""What `agent.py` runs: torchrun's agent for a node, with additions for long runs on a cluster.

- SIGUSR1, SIGTERM and SIGINT are passed on to the training processes, which save and exit. torchrun alone is killed by
  the first, and kills its processes 30 seconds after the others, in the middle of a large checkpoint.
- Its exit code is that of the training process that failed first: 75 where the run was saved, 128 + n after signal n.
- It prints which rank that was and why, followed by the end of its error log where it has one, and which ranks were
  stopped (SIGSTOP, a debugger), on which the others have waited.
- It names the port on which the agents do not meet.
- It exits when the agent of another node has exited. torchrun alone waits until communication times out.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]
from agent import SAVED_STATUS, SIGNALS, leave_before_start
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

# How long the processes of this node may still run when the agent of another node has exited: they mostly end by
# themselves, and their own error is then reported.
GRACE_SECONDS = 20.0
# File in the log directory of a node that has failed, with its exit status. srun ends the other nodes then, which exit
# with 75 if they were still starting, and returns the highest status of all.
FAILED = "failed"
_LINES = 15


@dataclass
class _Watch:
    """What has happened to the training processes so far.

    Attributes:
        started: whether they were running once.
        signalled: the signals that were passed on.
        stopped: the ranks that were stopped when they were last looked at, and their process ids.
        looked_at: when that was.
        closed_at: when the agent of another node was first found to have exited.
    """

    started: bool = False
    signalled: set[int] = field(default_factory=set)
    stopped: dict[int, int] = field(default_factory=dict)
    looked_at: float = 0.0
    closed_at: float | None = None


_watch = _Watch()


class PeerLostError(Exception):
    """The agent of another node has ended."""


def main(arguments: list[str]) -> int:
    """Runs the training processes of this node; returns the exit status, and notes a failure in `FAILED`."""
    status = _run(arguments)
    if status not in (0, SAVED_STATUS) and (folder := _argument(arguments, "--log-dir")) is not None:
        with suppress(OSError):  # the exit status says it too
            Path(folder, FAILED).write_text(f"{status}\n")
    return status


def _run(arguments: list[str]) -> int:
    for number in SIGNALS:
        signal.signal(number, _forward)
    _watch_processes()
    try:
        run.main(["--signals-to-handle", "SIGHUP,SIGQUIT", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _report(rank, failure)
    except PeerLostError as error:
        _report_stopped()
        return _fail(str(error))
    except RendezvousConnectionError:
        return _fail(
            f"the agents cannot meet at {_endpoint(arguments)}: another program has the port, or nobody listens there; "
            "check MASTER_ADDRESS, or choose another MASTER_PORT"
        )
    except RendezvousError as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print(f"error: {socket.gethostname()}: {message}", file=sys.stderr)
    return 1


def _endpoint(arguments: list[str]) -> str:
    """HOST:PORT of the rendezvous, as `torchrun.sh` passes it."""
    return _argument(arguments, "--rdzv-endpoint") or "its port"


def _argument(arguments: list[str], option: str) -> str | None:
    return arguments[arguments.index(option) + 1] if option in arguments else None


def _forward(number: int, frame: FrameType | None) -> None:
    """Passes a signal on to the training processes; before they are started there is nothing to save, and it exits."""
    children = psutil.Process().children()
    _watch.signalled.add(number)
    if not children and not _watch.started:
        leave_before_start(number, frame)
    for child in children:
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _watch_processes() -> None:
    """Makes torchrun's regular query for waiting nodes also look at the processes here and at the other nodes."""
    query = DynamicRendezvousHandler.num_nodes_waiting

    def num_nodes_waiting(handler: Any) -> int:
        _watch.started = True
        _look_for_stopped()
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


def _look_for_stopped() -> None:
    """Notes which training processes are stopped, once a second: when one has failed, torchrun ends the others."""
    if time.monotonic() - _watch.looked_at < 1:
        return
    _watch.looked_at = time.monotonic()
    _watch.stopped = {}
    for child in psutil.Process().children():
        try:
            if child.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                _watch.stopped[int(child.environ()["RANK"])] = child.pid
        except (psutil.Error, KeyError):
            continue


def _report_stopped() -> None:
    for rank, pid in sorted(_watch.stopped.items()):
        print(f"error: rank {rank} on {socket.gethostname()} (process {pid}) was stopped", file=sys.stderr)


def _report(rank: int, failure: ProcessFailure) -> int:
    """Prints which rank failed and why; returns the exit status that goes with it."""
    host = socket.gethostname()
    # A process that has only just started is killed by the signal.
    killed = -failure.exitcode in _watch.signalled
    if failure.exitcode == SAVED_STATUS or (killed and failure.exitcode != -signal.SIGINT):
        print(f"{host}: stopped by a signal (exit code {SAVED_STATUS}); the same command continues it", flush=True)
        return SAVED_STATUS
    reason = f"exit code {failure.exitcode}" if failure.exitcode >= 0 else f"killed by {_name(-failure.exitcode)}"
    _report_stopped()
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
