"""Two runs in one directory: the second is refused; what a kill leaves behind refuses nobody."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from children import Child
from run_equality import assert_same_run
from tiny_runs import records_of

from nld_train.errors import UserError
from nld_train.training import run_lock as locking
from nld_train.training.run_lock import LOCK_FILE, RunLock, living_owner, run_lock

pytestmark = pytest.mark.usefixtures("quick_reports")
Command = Callable[..., tuple[int, str]]


def test_a_second_run_in_the_same_folder(
    command: Command, settings: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    """One line with process and host, and nothing changes; killed, the first one hinders nobody."""
    first = Child(tmp_path / "run", settings, step_seconds=1.0)
    first.wait_for_step(1)
    owner = living_owner(tmp_path / "run")
    assert owner is not None
    assert owner.process == first.process.pid
    status, errors = command(f"run.dir={tmp_path / 'run'}")
    assert status == 2
    assert errors.startswith(f"error: run.dir: {tmp_path / 'run'} is in use by process {first.process.pid} on ")
    assert len(errors.splitlines()) == 1
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    assert records_of(tmp_path / "run")
    assert (tmp_path / "run" / LOCK_FILE).exists()
    assert living_owner(tmp_path / "run") is None
    begin = time.monotonic()
    status, errors = command(f"run.dir={tmp_path / 'run'}")
    assert (status, errors) == (0, "")
    assert time.monotonic() - begin < locking.STALE_SECONDS / 2
    assert_same_run(tmp_path / "run", whole)
    assert not (tmp_path / "run" / LOCK_FILE).exists()


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch, system: str = "another") -> Iterator[None]:
    """What happens inside happens on another machine."""
    with monkeypatch.context() as patch:
        patch.setattr(locking, "_running_system", lambda: system)
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every 50 ms, awaited for a second."""
    monkeypatch.setattr(locking, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(locking, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(locking, "_POLL_SECONDS", 0.02)


def die(lock: RunLock, keep_descriptor: bool = False) -> int:
    """As when the process of a lock is killed; with its file open, as when a file server keeps the lock."""
    lock._released.set()
    time.sleep(0.1)
    descriptor = os.dup(lock._descriptor) if keep_descriptor else -1
    os.close(lock._descriptor)
    return descriptor


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_a_run_on_another_machine_is_seen_by_its_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """Whether or not the file system has locks."""
    if not locks:
        monkeypatch.setattr(locking, "take_lock", lambda *_: locking.LockState.UNSUPPORTED)
    with elsewhere(monkeypatch):
        lock = RunLock(tmp_path)
    with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on "), run_lock(tmp_path):
        pass
    lock.require()
    lock.release()
    with run_lock(tmp_path):
        pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kept", [False, True], ids=["released", "kept"])
def test_a_requeue_on_another_machine_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kept: bool
) -> None:
    """It waits for a sign of life and starts, even if the file server keeps the lock of the dead machine."""
    with elsewhere(monkeypatch):
        descriptor = die(RunLock(tmp_path), kept)
    begin = time.monotonic()
    with run_lock(tmp_path) as lock:
        assert lock is not None
        lock.require()
        assert time.monotonic() - begin > 0.9
        assert "waiting up to 1 s for a sign of life" in capsys.readouterr().err
    if kept:
        os.close(descriptor)
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_machine_that_died_yesterday(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(monkeypatch):
        die(RunLock(tmp_path))
    yesterday = time.time() - 86400
    os.utime(tmp_path / LOCK_FILE, (yesterday, yesterday))
    assert living_owner(tmp_path) is None
    begin = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - begin < 10


@pytest.mark.usefixtures("quick")
def test_a_run_that_was_frozen_stops_when_another_has_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its next checkpoint, before it writes."""
    with elsewhere(monkeypatch):
        frozen = RunLock(tmp_path)
        frozen._released.set()
    fcntl.flock(frozen._descriptor, fcntl.LOCK_UN)  # between machines a file system may have no locks
    with run_lock(tmp_path) as lock:
        assert lock is not None
        with pytest.raises(OSError, match=f"process {os.getpid()} on .* has taken over {re.escape(str(tmp_path))}"):
            frozen.require()
        frozen.release()
        lock.require()


def test_a_lock_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    with run_lock(tmp_path) as lock:
        assert lock is not None
        (tmp_path / LOCK_FILE).unlink()
        lock.require()
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()


def test_a_folder_in_place_of_the_lock(command: Command, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    status, errors = command(f"run.dir={tmp_path}")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert f"{tmp_path / LOCK_FILE} cannot be opened (Is a directory)" in errors


def test_a_link_to_nowhere_in_place_of_the_lock(tmp_path: Path) -> None:
    """It does not wait for ever, and neither does a look at a pipe."""
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "none" / "lock")
    with pytest.raises(UserError, match="cannot be opened"), run_lock(tmp_path):
        pass
    (tmp_path / LOCK_FILE).unlink()
    os.mkfifo(tmp_path / LOCK_FILE)
    assert living_owner(tmp_path) is None


def test_a_copy_of_a_running_folder_starts(tmp_path: Path) -> None:
    """The copied file names a living process, which has no lock on it."""
    (tmp_path / "run").mkdir()
    with run_lock(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with run_lock(tmp_path / "copy"):
            pass
