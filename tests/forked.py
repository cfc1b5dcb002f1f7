"""Child processes of the tests, forked from one that has imported everything (`fork_server.py`)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TESTS = Path(__file__).parent
SERVER = TESTS / "fork_server.py"
LENGTH = struct.Struct("!I")
OWNER = "NLD_TESTS_OWNER"  # variable with the process id of the test run
PRELOADING = 180  # seconds until the server must have imported everything
GRACE = 10  # seconds between SIGTERM and SIGKILL for the ranks of a group in which one has failed


def owner_of_run() -> int:
    """The process that all workers of this test run, and the commands that they start, belong to."""
    return int(os.environ.setdefault(OWNER, str(os.getpid())))


# One path for all workers; short, since a socket's may have about a hundred characters only.


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"nld-tests-{os.getuid()}-{owner_of_run()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def remove_folder() -> None:
    """At the end of the test run, when no worker is left; commands that a worker's tests start may share the folder."""
    if owner_of_run() == os.getpid():
        shutil.rmtree(_folder(), ignore_errors=True)


def start_server_early() -> None:
    """Has the server import the libraries while the workers collect; those that need it sooner wait for it."""
    threading.Thread(target=lambda: server_socket(), daemon=True).start()


def server_socket() -> Path:
    """Where the server listens; the first worker that needs it starts it."""
    folder = _folder()
    path = folder / "socket"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _start_server(path, folder / "server.log")
    return path


def _start_server(path: Path, log: Path) -> None:
    paths = [str(TESTS.parent), str(TESTS), *(str(folder) for folder in sorted(TESTS.iterdir()) if folder.is_dir())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with log.open("w") as output:
        words = [sys.executable, str(SERVER), str(path), str(owner_of_run())]
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    deadline = time.monotonic() + PRELOADING
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the fork server did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.02)


class Forked:
    """A process and a process group of its own, which runs what Python would run with the same words.

    Args:
        words: `-m MODULE ...`, `SCRIPT.py ...`, an installed command with arguments, or `call MODULE FUNCTION JSON`.
        output: file for both streams of output.
        directory: it starts in; by default this process's.
        environment: by default this process's.
        errors: file for the error stream, where it is another one.
    """

    def __init__(
        self,
        words: Sequence[str],
        output: IO[Any],
        directory: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        errors: IO[Any] | None = None,
    ) -> None:
        request = {
            "words": list(map(str, words)),
            "directory": os.fspath(directory or os.getcwd()),
            "environment": dict(os.environ if environment is None else environment),
        }
        self._status: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.fspath(server_socket()))
        with open(os.devnull) as nothing:
            streams = [stream.fileno() for stream in (nothing, output, errors or output)]
            body = json.dumps(request).encode()
            socket.send_fds(self._connection, [LENGTH.pack(len(body))], streams)
            self._connection.sendall(body)
            self._connection.settimeout(60)
            self.pid = self._number()

    def _number(self) -> int:
        found = b""
        while len(found) < 4:
            part = self._connection.recv(4 - len(found))
            if not part:
                raise AssertionError("the fork server has ended")
            found += part
        number: int = struct.unpack("!i", found)[0]
        return number

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative where a signal ended it."""
        return self.poll(0)

    def poll(self, timeout: float) -> int | None:
        """Waits for its end, at most so many seconds."""
        if self._status is None:
            # A timeout of 0 would make the socket non-blocking: nothing yet is the same error by another name.
            self._connection.settimeout(timeout or 0.0)
            with suppress(TimeoutError, BlockingIOError):
                self._status = self._number()
                self._connection.close()
        return self._status

    def kill(self) -> None:
        """Ends it, and not what it has started."""
        self.signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Ends it and all that it has started."""
        self.signal_group(signal.SIGKILL)

    def signal_group(self, number: int) -> None:
        """Sends a signal to it and to all processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        if self.exitcode is None:
            os.kill(self.pid, number)


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit code and what it printed, on both streams or on standard output alone."""

    status: int
    output: str
    errors: str = ""


def run_forked(
    words: Sequence[str],
    timeout: float,
    directory: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    apart: bool = False,
) -> Finished:
    """Runs a process to its end and keeps both streams, in one or `apart`; fails where it takes too long."""
    with tempfile.TemporaryFile("a+b") as output, tempfile.TemporaryFile("a+b") as errors:
        process = Forked(words, output, directory, environment, errors if apart else None)
        status = process.poll(timeout)
        if status is None:
            process.kill_group()
            raise AssertionError(f"{words} took more than {timeout} s:\n{_read(output)}{_read(errors)}")
        return Finished(status, _read(output), _read(errors))


def run_ranks(processes: int, words: Sequence[str], timeout: float) -> Finished:
    """Runs the processes of a group, as torchrun would start them; where one fails, the others are ended.

    The exit code is 0, or the first that was not.
    """
    with tempfile.TemporaryFile("a+b") as output:
        group = [Forked(words, output, environment=each) for each in rank_environments(processes)]
        try:
            status = wait_for_group(group, timeout)
        finally:
            end_group(group)
        if status is None:
            raise AssertionError(f"{words} in {processes} processes took more than {timeout} s:\n{_read(output)}")
        return Finished(status, _read(output))


def rank_environments(processes: int) -> list[dict[str, str]]:
    """Variables of each process of a group, on a free port."""
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def free_port() -> int:
    """A port that no other worker of this test run gets.

    Below those that the system gives away itself, one after another for all workers.
    """
    counter = _folder() / "port"
    with counter.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        port = int(file.read() or 10000 + owner_of_run() % 200 * 100)
        while True:
            port = port + 1 if port < 32000 else 10000
            with closing(socket.socket()) as probe, suppress(OSError):
                probe.bind(("127.0.0.1", port))
                break
        file.truncate(0)
        file.write(str(port))
    return port


def wait_for_group(group: Sequence[Forked], timeout: float) -> int | None:
    """Until all have ended well, or one has not: 0 or its exit code; None where it takes too long."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [process.poll(0.02) for process in group]
        failed = [code for code in codes if code]
        if failed:
            return failed[0]
        if all(code == 0 for code in codes):
            return 0
    return None


def end_group(group: Sequence[Forked]) -> None:
    """Ends those that still run, first kindly."""
    running = [process for process in group if process.exitcode is None]
    for process in running:
        process.signal_group(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for process in running:
        process.poll(max(deadline - time.monotonic(), 0))
        if process.exitcode is None:
            process.kill_group()
            process.poll(GRACE)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
