"""Files whose checksums are computed while they are written, so that nobody has to read them again.

torch's writer forgets what goes wrong in its second thread, and would finish without that thread's tensors. Here the
first failure of any file is kept, and ends the others.
"""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem

from nld_train.training.checkpoint.manifest import Checksums, Crc32


class HashedFiles(FileSystem):
    """The file system of torch's distributed checkpoint, remembering what it wrote.

    Attributes:
        checksums: size and checksum of every file that was written and closed, by the name it was opened with.
        failure: the first error while a file was open, whatever its kind; whoever started the writing must raise it.
    """

    def __init__(self) -> None:
        self.checksums: Checksums = {}
        self.failure: BaseException | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """Opens a file; what is written to it is hashed by the thread that writes, one thread per file."""
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
        """Keeps what is behind an error, unless there was one before: torch raises others on its way out of a file."""
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt | OSError):
            behind = behind.__cause__ or behind.__context__
        self.failure = self.failure or behind or error


class _HashedStream:
    """A stream that is written from its beginning to its end, or until any file of `files` fails."""

    def __init__(self, stream: Any, files: HashedFiles) -> None:
        self._stream, self._files = stream, files
        self.digest = Crc32()
        self.size = 0

    def write(self, data: Any) -> int:
        if self._files.failure is not None:
            raise self._files.failure
        self.digest.update(data)
        count: int = self._stream.write(data)
        assert count == memoryview(data).nbytes, "a buffered file takes all that it is given"
        self.size += count
        return count

    def __getattr__(self, name: str) -> Any:
        assert name not in ("seek", "truncate", "writelines"), f"{name} would not be seen by the checksum"
        return getattr(self._stream, name)
