"""Standard output that cannot be written: its reader has gone (`| head -1`), its disk is full, or it was closed."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class OutputError(OSError):
    """Standard output cannot be written. It is no `BrokenPipeError`, at which rich would exit by itself."""

    @property
    def silent(self) -> bool:
        """Whether its reader has gone, which is no failure."""
        return self.errno == errno.EPIPE


class _StandardOutput(io.FileIO):
    """Descriptor 1, whose errors are told from those of other files.

    Attributes:
        required: whether it is an error that it cannot be written. Otherwise that is one line on standard error.
        failure: the error, once there was one; what is printed afterwards is dropped.
    """

    required = True
    failure: OutputError | None = None

    def write(self, data: Any, /) -> int:
        """See `io.FileIO.write`.

        Raises:
            OutputError: it cannot be written, and is required.
        """
        try:
            return super().write(data)
        except OSError as error:
            _to_nothing(1)
            if self.required:
                self.failure = OutputError(error.errno, error.strerror)
                raise self.failure from error
            write_error(f"warning: standard output: {error.strerror}; the run continues without it")
            return memoryview(data).nbytes


def watch_output() -> None:
    """Makes it an `OutputError` that standard output cannot be written, for `errors.exit_status` to report.

    Closed standard descriptors are taken first: the next file to be opened would get their numbers, and what a library
    prints would be written into it.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _take_if_closed(number, flags)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(_writer())
    elif _raw_of(sys.stdout) is None and _descriptor(sys.stdout) == 1:
        now: Any = sys.stdout
        now.flush()
        lines = {"line_buffering": now.line_buffering, "write_through": now.write_through}
        sys.stdout = io.TextIOWrapper(_writer(), now.encoding, now.errors, **lines)


def output_not_required() -> None:
    """From now on it is a warning that standard output cannot be written: a long run does not end with its terminal."""
    raw = _raw_of(sys.stdout)
    if raw is not None:
        raw.required = False


def flush_output() -> None:
    """Writes what standard output still holds, which would otherwise fail at the end of the interpreter.

    Raises:
        OutputError: it cannot be written, or could not be before.
    """
    sys.stdout.flush()
    raw = _raw_of(sys.stdout)
    if raw is not None and raw.failure is not None:
        raise raw.failure


def write_error(line: str) -> None:
    """Prints a line on standard error, if that can be written."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _to_nothing(2)


def _writer() -> io.BufferedWriter:
    return io.BufferedWriter(_StandardOutput(1, "w", closefd=False))


def _raw_of(stream: Any) -> _StandardOutput | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _StandardOutput) else None


def _descriptor(stream: Any) -> int | None:
    """None for a stream in memory, and for one that is no text file."""
    try:
        return int(stream.fileno()) if isinstance(stream, io.TextIOWrapper) else None
    except (OSError, ValueError):
        return None


def _take_if_closed(number: int, flags: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        _put(os.open(os.devnull, flags), number)


def _to_nothing(number: int) -> None:
    _put(os.open(os.devnull, os.O_WRONLY), number)


def _put(opened: int, number: int) -> None:
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)
