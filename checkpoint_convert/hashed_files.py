"""Files whose checksums are computed while they are written, so that they need not be read again.

torch's writer ignores errors of its second thread and would finish without that thread's tensors. Here the first error
of any file is stored, and the writing of the others stops.
"""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem

from nld_train.errors import UserError
from nld_train.training.checkpoint.manifest import Checksums, Crc32


class HashedFiles(FileSystem):
    """The file system of torch's distributed checkpoint, with the checksums of the files that it wrote.

    Attributes:
        checksums: size and checksum of every file that was written and closed, by name.
        failure: the first error of any kind while a file was open; the caller of the writer must raise it.
    """

    def __init__(self) -> None:
        self.checksums: Checksums = {}
        self.failure: BaseException | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """Opens a file; the thread that writes it also computes its checksum, one thread per file."""
        if "w" not in mode:
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        try:
            with super().create_stream(path, mode) as stream:
                hashed = _HashedStream(stream, self)
                yield cast(io.IOBase, hashed)
            self.checksums[Path(path).name] = (hashed.size, hashed.digest.hexdigest())
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Stores the root cause of the first error; torch raises others while it closes a file."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt | OSError | UserError):
            cause = cause.__cause__ or cause.__context__
        self.failure = self.failure or cause or error


class _HashedStream:
    """A stream that is written sequentially, until any file of `files` fails."""

    def __init__(self, stream: Any, files: HashedFiles) -> None:
        self._stream, self._files = stream, files
        self.digest = Crc32()
        self.size = 0

    def write(self, data: Any) -> int:
        if self._files.failure is not None:
            raise self._files.failure
        self.digest.update(data)
        count: int = self._stream.write(data)
        assert count == memoryview(data).nbytes, "a buffered file writes all of its input"
        self.size += count
        return count

    def __getattr__(self, name: str) -> Any:
        assert name not in ("seek", "truncate", "writelines"), f"{name} would bypass the checksum"
        return getattr(self._stream, name)
