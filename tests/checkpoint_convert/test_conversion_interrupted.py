"""A conversion that is killed leaves no destination, and can be run again; two at once do not mix."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest
from forked import Forked
from hugging_face_sources import TEXT, Source, larger, named, read_tensors, write_source
from test_conversion_round_trip import assert_same_bits, expected_tensors

from checkpoint_convert.cli import main
from checkpoint_convert.staging import staged
from nld_train.errors import UserError

# Large enough that there is time to interrupt it.
LARGE = larger(TEXT, vocab_size=16384, hidden_size=1024, intermediate_size=2048, num_hidden_layers=4)
SOURCE = Source("interrupted", tied=True)


def wait_for_bytes(process: Forked, log: Path, temporary: Path, pattern: str, count: int) -> None:
    """Until so many bytes have been written."""
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size for path in temporary.glob(pattern)) < count:
        assert process.exitcode is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_runs_again(number: int, tmp_path: Path) -> None:
    meaning = write_source(tmp_path / "source", SOURCE, LARGE)
    steps = (
        ("*.distcp", ["import", str(tmp_path / "source"), str(tmp_path / "imported")]),
        ("*.safetensors", ["export", str(tmp_path / "imported"), str(tmp_path / "out"), "--format", "nld"]),
    )
    for pattern, arguments in steps:
        destination = Path(arguments[2])
        temporary = destination.with_name(f"{destination.name}.tmp")
        with (tmp_path / "log").open("a") as log:
            process = Forked(["call", "slow_conversion", "convert", json.dumps(arguments)], log)
        wait_for_bytes(process, tmp_path / "log", temporary, pattern, 8 << 20)
        process.signal(number)
        assert process.poll(60) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        assert not destination.exists()
        assert temporary.exists() is (number == signal.SIGKILL)

        assert main(arguments) == 0
        assert not temporary.exists()
    assert_same_bits(read_tensors(tmp_path / "out"), expected_tensors(meaning, SOURCE, "nld"))


def test_what_was_left_behind_does_not_get_in(tmp_path: Path) -> None:
    write_source(tmp_path / "source", named("untied"))
    left = tmp_path / "imported.tmp"
    (left / "deep").mkdir(parents=True)
    (left / "__0_7.distcp").write_text("left behind")
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "imported")]) == 0
    assert not left.exists()
    assert not (tmp_path / "imported" / "__0_7.distcp").exists()
    assert not (tmp_path / "imported" / "deep").exists()


def test_two_at_once_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "source", named("untied"))
    arguments = ["import", str(tmp_path / "source"), str(tmp_path / "imported")]
    with staged(tmp_path / "imported", 0) as temporary:
        (temporary / "mine").write_text("kept")
        assert main(arguments) == 2
        assert "another conversion" in capsys.readouterr().err
        assert (temporary / "mine").read_text() == "kept"
    assert (tmp_path / "imported" / "mine").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"source", "imported"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS does, it refuses the lock, and one on what is not open for writing in any case."""
    modes = []

    def refuse(descriptor: int, _: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with staged(tmp_path / "out", 0) as temporary:
        (temporary / "mine").write_text("kept")
    assert modes == [os.O_RDWR]
    assert (tmp_path / "out" / "mine").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_that_fails_otherwise_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"out: cannot be written \(Input/output error\)"), staged(tmp_path / "out", 0):
        pytest.fail("nothing may be written")


def test_a_lock_that_was_given_back_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one finishes between the moments at which this one opens the file and locks it."""
    lock = tmp_path / "out.tmp.lock"
    monkeypatch.setattr(fcntl, "flock", lambda *_: lock.unlink())
    with pytest.raises(UserError, match="another conversion is writing there"), staged(tmp_path / "out", 0):
        pytest.fail("nothing may be written")
