"""The lock of a run's directory: two runs in one directory would write over each other's metrics and checkpoints.

The file `<run.dir>/run.lock` names the process that has the lock. That process keeps it open with a lock of the
operating system, which ends with the process, and on one machine this decides. Between machines it does not: a network
file system may have no locks, or keep the lock of a machine that is gone. There a heartbeat decides: the owner sets the
file's time every `HEARTBEAT_SECONDS`, and an owner on another machine counts as gone when that time has not changed for
`STALE_SECONDS`. The time is compared with itself, since the clocks of two machines and a file server differ.

No torch is imported here: other commands ask `living_owner` whether a run still has its directory.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from nld_train.errors import UserError
from nld_train.locks import LockState, is_same_file, take_lock
from nld_train.outside_json import parse_object
from nld_train.processes import rank

LOCK_FILE = "run.lock"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
# An owner on another machine whose last sign of life is so old is gone, however wrong the clocks are.
_LONG_AGO_SECONDS = 3600.0
# On one machine, a start waits so long for a process that is ending, or that looks at the lock.
_GRACE_SECONDS = 1.0
_POLL_SECONDS = 0.2
_LONGEST_RECORD = 4096


@dataclass(frozen=True)
class Owner:
    """The process that has the lock of a run's directory.

    Attributes:
        process: its id.
        host: the name of its machine.
        system: identifies the running system of that machine: containers share it, and a restart changes it.
        token: of this one lock.
    """

    process: int
    host: str
    system: str
    token: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def on_this_machine(self) -> bool:
        """Whether the lock of the operating system decides."""
        return self.system == _running_system()


@contextmanager
def run_lock(directory: Path) -> Iterator[RunLock | None]:
    """Has the lock of a run's directory while it is open, on rank 0; None on other ranks, which it is for as well.

    Args:
        directory: `run.dir`; must exist.

    Raises:
        UserError: another run has it, or the file cannot be written.
    """
    if rank() != 0:
        yield None
        return
    try:
        lock = RunLock(directory)
    except OSError as error:
        raise UserError(
            f"run.dir: {directory / LOCK_FILE} cannot be opened ({error.strerror}); make it a file that can be "
            "written, or remove it where no run uses the folder"
        ) from error
    try:
        yield lock
    finally:
        lock.release()


class RunLock:
    """The lock of a run's directory, taken.

    Args:
        directory: `run.dir`; must exist.

    Raises:
        UserError: another run has it.
        OSError: the file cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / LOCK_FILE
        self._own = Owner(os.getpid(), socket.gethostname(), _running_system(), uuid.uuid4().hex)
        self._descriptor = self._acquire()
        self._released = threading.Event()
        threading.Thread(target=self._give_signs_of_life, name="run-lock", daemon=True).start()

    def _acquire(self) -> int:
        """Waits until it is certain whether another run has the lock; returns the open file."""
        wait = _Wait(self._directory)
        created = None
        while True:
            # The owner removes the file when it ends, so each attempt may create it.
            created = _create(self._path) or created
            try:
                descriptor = os.open(self._path, os.O_RDWR)
            except FileNotFoundError:  # removed since
                if self._path.is_symlink():
                    raise
                continue
            state = take_lock(descriptor, self._path)
            if self._is_free(descriptor, state, created, wait):
                if state != LockState.HELD:
                    self._write_owner(descriptor)
                    return descriptor
                # The file server keeps the lock of a machine that is gone; a new file has none.
                self._path.unlink(missing_ok=True)
            os.close(descriptor)
            time.sleep(_POLL_SECONDS)

    def _is_free(self, descriptor: int, state: LockState, created: int | None, wait: _Wait) -> bool:
        status = os.fstat(descriptor)
        if status.st_ino == created and state != LockState.HELD:
            return True
        try:
            return wait.is_free(_read_owner(descriptor), status.st_mtime_ns, state)
        except UserError:
            os.close(descriptor)
            raise

    def _write_owner(self, descriptor: int) -> None:
        # A full disk has no space for it. The lock holds without, and space may be freed after it is taken.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(self._own)).encode(), 0)
            os.fsync(descriptor)

    def _give_signs_of_life(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._descriptor)

    def require(self) -> None:
        """Checks that no other run has taken the lock from this one, which it may if this one was frozen for long.

        Raises:
            OSError: another run has it.
        """
        if not self._path.exists():  # removed by hand
            try:
                lost, self._descriptor = self._descriptor, self._acquire()
            except UserError as error:
                raise OSError(str(error)) from error
            os.close(lost)
        elif not self._is_ours():
            owner = _owner_of(self._path) or "another run"
            raise OSError(f"{owner} has taken over {self._directory} after this run gave no sign of life")

    def _is_ours(self) -> bool:
        owner = _read_owner(self._descriptor)
        return is_same_file(self._descriptor, self._path) and (owner is None or owner.token == self._own.token)

    def release(self) -> None:
        """Ends the lock and removes its file."""
        self._released.set()
        with suppress(OSError):
            if self._is_ours():
                self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


@dataclass
class _Wait:
    """Waiting for the lock of a directory, until it is certain whether its owner lives.

    Attributes:
        directory: `run.dir`.
        begin: of the wait, on the monotonic clock.
        first: owner and time of the file when it was first seen.
    """

    directory: Path
    begin: float = field(default_factory=time.monotonic)
    first: tuple[Owner | None, int] | None = None

    def is_free(self, owner: Owner | None, signed: int, state: LockState) -> bool:
        """Whether the lock may be taken now; False to ask again a little later.

        Args:
            owner: that the file names; None where it cannot be read.
            signed: time of the file in nanoseconds.
            state: of the lock of the operating system.

        Raises:
            UserError: another run has the lock.
        """
        waited = time.monotonic() - self.begin
        if owner is not None and owner.on_this_machine and state != LockState.UNSUPPORTED:
            if state == LockState.HELD and waited > _GRACE_SECONDS:
                raise self._in_use(owner)
            return state == LockState.TAKEN
        if self.first is None:
            self.first = (owner, signed)
            if not _long_ago(signed):
                self._announce(owner)
        if self.first != (owner, signed):
            raise self._in_use(owner)
        return waited > STALE_SECONDS or _long_ago(signed)

    def _in_use(self, owner: Owner | None) -> UserError:
        return UserError(
            f"run.dir: {self.directory} is in use by {owner or 'another run'}; wait until it has ended, stop it, or "
            "name another folder"
        )

    def _announce(self, owner: Owner | None) -> None:
        print(
            f"run.dir: {self.directory} is locked by {owner or 'a run that is not named'}; waiting up to "
            f"{STALE_SECONDS:.0f} s for a sign of life before this run goes on",
            file=sys.stderr,
        )


def living_owner(directory: Path) -> Owner | None:
    """The process that has the lock of a run's directory; None where no run has it, or its process is gone.

    A process on another machine, or on a file system without locks, counts as gone when its last sign of life is older
    than `STALE_SECONDS`, by the clock of this machine.

    Raises:
        OSError: the file exists and cannot be read.
    """
    path = directory / LOCK_FILE
    owner = _owner_of(path)
    if owner is None:
        return None
    state = LockState.UNSUPPORTED
    if owner.on_this_machine:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            state = take_lock(descriptor, path, shared=True)
        finally:
            os.close(descriptor)
    if state == LockState.UNSUPPORTED:
        return owner if time.time() - path.stat().st_mtime < STALE_SECONDS else None
    return owner if state == LockState.HELD else None


def _create(path: Path) -> int | None:
    """The file's number if this call has created it, else None."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


def _owner_of(path: Path) -> Owner | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return _read_owner(descriptor)
    finally:
        os.close(descriptor)


def _read_owner(descriptor: int) -> Owner | None:
    """The owner that an open file names; None where it names none, such as while it is being written."""
    try:
        found = parse_object(os.pread(descriptor, _LONGEST_RECORD, 0), "lock")
        host = "".join(letter for letter in str(found["host"]) if letter.isprintable())
        return Owner(int(found["process"]), host, str(found["system"]), str(found["token"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):  # a UserError among them
        return None


def _long_ago(signed: int) -> bool:
    return time.time() - signed / 1e9 > _LONG_AGO_SECONDS


@cache
def _running_system() -> str:
    """Identifies the running system of this machine; its name where Linux does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
