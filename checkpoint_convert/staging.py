"""Atomic writing of a destination directory."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nld_train.errors import UserError
from nld_train.files import synchronise, synchronise_all
from nld_train.locks import LockState, take_lock

# Space for everything but the weights: configuration, tokenizer, metadata and overhead of the file system.
_SLACK_BYTES = 64 << 20
_FLUSH_SECONDS = 0.1


@contextmanager
def staged(destination: Path, needed_bytes: int) -> Iterator[Path]:
    """Yields an empty directory that becomes `destination` when the block ends without an error.

    Until then it is named `destination` with `.tmp` appended. Remains of an interrupted conversion are removed first.

    Args:
        destination: must not exist.
        needed_bytes: bytes that will be written.

    Raises:
        UserError: the destination exists, cannot be written or has too little space, or another conversion writes it.
    """
    require_new(destination)
    temporary = destination.with_name(f"{destination.name}.tmp")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(destination):
            try:
                temporary.mkdir(exist_ok=True)
                _empty(temporary)
                _check_space(destination, needed_bytes)
                with _background_sync(temporary):
                    yield temporary
                _finish(temporary, destination)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"{destination}: cannot be written ({error.strerror or error})") from error


def require_new(destination: Path) -> None:
    """Refuses to write where something is.

    Raises:
        UserError: the destination exists.
    """
    if destination.exists():
        raise UserError(f"{destination}: exists already; remove it, or name another destination")


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    """Takes a lock on the file `DST.tmp.lock`; without one where the file system has no locks.

    Raises:
        UserError: another process has it.
    """
    path = destination.with_name(f"{destination.name}.tmp.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if take_lock(descriptor, path) == LockState.HELD:
            raise UserError(f"{destination}: another conversion is writing there")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_space(destination: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(destination.parent).free
    needed = needed_bytes + _SLACK_BYTES
    if free < needed:
        raise UserError(
            f"{destination}: needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there; "
            "make room, or name another destination"
        )


@contextmanager
def _background_sync(directory: Path) -> Iterator[None]:
    """Calls fsync on the files in the background while others are written, so that the last fsync is short."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(_FLUSH_SECONDS):
            for path in directory.iterdir():
                with suppress(OSError):  # renamed meanwhile; `_finish` reports errors
                    synchronise(path)

    thread = threading.Thread(target=work, name="background-sync", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _finish(temporary: Path, destination: Path) -> None:
    """Renames the directory after everything in it is on disk."""
    synchronise_all(temporary)
    if destination.exists():
        raise UserError(f"{destination}: was created by another process meanwhile; remove it and convert again")
    os.rename(temporary, destination)
    synchronise(destination.parent)
