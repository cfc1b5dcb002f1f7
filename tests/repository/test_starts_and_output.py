"""Signals while a command starts, and standard output that cannot be written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from documented_commands import ROOT
from forked import Forked
from slow_import import interrupted_import

from nld_train.errors import exit_status

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize(
    "words", [["-m", "nld_train.train"], ["-c", "from nld_train.commands.train import main; main()"]]
)
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)],
    ids=["USR1", "TERM", "INT"],
)
def test_a_run_that_is_signalled_while_it_imports_has_nothing_to_save(
    tmp_path: Path, number: signal.Signals, status: int, words: list[str]
) -> None:
    found, printed = interrupted_import(tmp_path, number, "hydra", *words)
    assert printed == (
        f"stopped by {number.name}: nothing to save yet (exit code {status}); the same command starts it again\n"
    )
    assert found == status


@pytest.mark.parametrize(
    ("library", "words", "message"),
    [
        (
            "rich",
            "data prepare text.txt --output sets",
            "interrupted: the same command continues where this one stopped",
        ),
        ("annotated_types", "decode checkpoint --mode ar --prompt x", "interrupted"),
    ],
    ids=["running", "arguments"],
)
def test_a_command_that_is_interrupted_while_it_imports_prints_one_line(
    tmp_path: Path, library: str, words: str, message: str
) -> None:
    name, *rest = words.split()
    done = interrupted_import(tmp_path, signal.SIGINT, library, "-m", f"nld_train.commands.{name}", *rest)
    assert done == (130, f"error: {message}\n")


@contextmanager
def full_disk() -> Iterator[IO[bytes]]:
    with open("/dev/full", "wb") as device:
        yield device


@contextmanager
def no_reader() -> Iterator[IO[bytes]]:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        yield pipe


def run_into(output: IO[bytes], words: Sequence[str], directory: Path) -> tuple[int | None, str]:
    """Runs a command whose standard output is a file; returns its exit status and its standard error."""
    with tempfile.TemporaryFile("a+b") as errors:
        process = Forked(words, output, directory, errors=errors)
        status = process.poll(120)
        errors.seek(0)
        return status, errors.read().decode()


# A plan is printed by rich, the help by argparse.
PRINTED = [[name, "--help"] for name in SCRIPTS] + [["nld-train", "experiment=quickstart", "run.dry=true"]]


@pytest.mark.parametrize("words", PRINTED, ids=" ".join)
def test_output_to_a_full_disk_is_one_line(tmp_path: Path, words: list[str]) -> None:
    with full_disk() as device:
        assert run_into(device, words, tmp_path) == (2, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("words", PRINTED, ids=" ".join)
def test_output_that_nobody_reads_any_more_ends_a_command_silently(tmp_path: Path, words: list[str]) -> None:
    with no_reader() as pipe:
        assert run_into(pipe, words, tmp_path) == (141, "")


@pytest.mark.parametrize(("closing", "line"), [(">&-", "error: standard output: Bad file descriptor\n"), ("2>&-", "")])
def test_a_closed_descriptor_is_one_line_or_none(closing: str, line: str) -> None:
    command = (
        f'"{sys.executable}" -m nld_train.commands.status {"/nowhere" if closing[0] == "2" else "--help"} {closing}'
    )
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_an_error_is_reported_though_standard_error_is_full() -> None:
    command = f'"{sys.executable}" -m nld_train.commands.status /nowhere 2>/dev/full'
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_broken_pipe_elsewhere_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    assert exit_status(run) == 2
    assert capsys.readouterr().err == "error: Broken pipe\n"
