"""Locks on files, which the operating system releases when their process ends, however that happens."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from enum import Enum
from pathlib import Path

# Errors of file systems without locks: some over a network, some in user space.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)


class LockState(Enum):
    """What came of taking a lock: this process has it, another one has it, or the file system has none."""

    TAKEN = "taken"
    HELD = "held"
    UNSUPPORTED = "unsupported"


def take_lock(descriptor: int, path: Path, shared: bool = False) -> LockState:
    """Takes the lock of an open file for this process, without waiting.

    Args:
        descriptor: of the file, open for writing: over NFS no other file can be locked.
        path: of the file. If it was replaced since it was opened, the lock counts as held: a lock on a removed file
            excludes nobody.
        shared: excludes only processes that lock the file alone.

    Raises:
        OSError: the lock cannot be taken for a reason that no `LockState` describes.
    """
    state = LockState.TAKEN
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return LockState.HELD
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        state = LockState.UNSUPPORTED
    return state if is_same_file(descriptor, path) else LockState.HELD


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
