"""Atomic writes, and synchronisation of files with the disk."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# Errors of file systems that cannot synchronise a directory: some in user space, some over a network.
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file atomically: a reader sees the old content or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
