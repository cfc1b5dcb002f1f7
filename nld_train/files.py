"""Atomic writes, and synchronisation of files with the disk."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Errors of file systems that cannot synchronise a directory: some in user space, some over a network.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
_SMALL_FILE_BYTES = 1 << 16


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file atomically: a reader sees the old content or the new one.

    Raises:
        OSError: it cannot be written; the old content stays, and nothing is left beside it.
    """
    with replaced_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)


def temporary_of(path: Path) -> Path:
    """The name of a file while it is written."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yields the name of another file, to be written; it replaces `path` when the block ends without an error.

    Raises:
        OSError: it cannot be written; the old content stays, and nothing is left beside it.
    """
    temporary = temporary_of(path)
    try:
        yield temporary
        synchronise(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None  # what the user knows
        raise


def set_aside(path: Path) -> Path:
    """Renames what cannot be used, so that something new can have its name; returns the new name.

    Raises:
        OSError: it cannot be renamed.
    """
    numbers = ("", *(f".{number}" for number in range(2, 1000)))
    names = (path.with_name(f"{path.name}.unreadable{number}") for number in numbers)
    renamed = next(name for name in names if not os.path.lexists(name))
    os.replace(path, renamed)
    return renamed


def is_full(directory: Path) -> bool:
    """Whether the file system of a directory has no space left for a file of some size."""
    try:
        return shutil.disk_usage(directory).free < _SMALL_FILE_BYTES
    except OSError:
        return False


def synchronise(path: Path) -> None:
    """Returns when the content of a file, or the names in a directory, are on the disk and survive a loss of power.

    Raises:
        OSError: they cannot be written to the disk.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NOT_SUPPORTED):
            raise
    finally:
        os.close(descriptor)


def synchronise_all(directory: Path) -> None:
    """`synchronise` for everything in a directory, at any depth, and for the directory itself."""
    for path in sorted(directory.rglob("*")):
        synchronise(path)
    synchronise(directory)


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading, or a link to one.

    Reading a pipe or a device, of which a model directory from elsewhere may be made, could wait or go on for ever.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(errno.EINVAL, "is no name of a file", str(path)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
