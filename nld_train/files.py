"""Files that are either whole or not there, and what brings them to the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# What file systems answer that cannot synchronise a directory: some in user space, some over a network.
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file in one act: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def synchronise(path: Path) -> None:
    """Returns when the content of a file, or the names in a directory, are on the disk and outlive a loss of power.

    Raises:
        OSError: they cannot be brought there.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT):
            raise
    finally:
        os.close(descriptor)


def synchronise_all(directory: Path) -> None:
    """The same for everything in a directory, at any depth, and for the directory itself."""
    for path in sorted(directory.rglob("*")):
        synchronise(path)
    synchronise(directory)
