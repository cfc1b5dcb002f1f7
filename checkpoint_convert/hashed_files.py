"""Files whose checksums are computed while they are written, so that nobody has to read them again."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem

from nld_train.training.integrity import Checksums, Crc32


class HashedFiles(FileSystem):
    """The file system of torch's distributed checkpoint, remembering what it wrote.

    Attributes:
        checksums: size and checksum of every file that was written and closed, by the name it was opened with.
    """

    def __init__(self) -> None:
        self.checksums: Checksums = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """Opens a file; what is written to it is hashed by the thread that writes, one thread per file."""
        with super().create_stream(path, mode) as stream:
            if "w" not in mode:
                yield stream
                return
            hashed = _HashedStream(stream)
            yield cast(io.IOBase, hashed)
        self.checksums[Path(path).name] = (hashed.size, hashed.digest.hexdigest())


class _HashedStream:
    """A stream that is written from its beginning to its end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.digest = Crc32()
        self.size = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        count: int = self._stream.write(data)
        assert count == memoryview(data).nbytes, "a buffered file takes all that it is given"
        self.size += count
        return count

    def __getattr__(self, name: str) -> Any:
        assert name not in ("seek", "truncate", "writelines"), f"{name} would not be seen by the checksum"
        return getattr(self._stream, name)
