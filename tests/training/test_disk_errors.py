"""File operations that fail: one line where a checkpoint cannot be written, a warning where one cannot be deleted."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from run_equality import assert_same_run
from safetensors import SafetensorError
from tiny_runs import newest_checkpoint, undrawn
from training_runs import Train

from nld_train.config.schema import CheckpointConfig
from nld_train.files import synchronise, write_atomically
from nld_train.model.adapter_files import DRAFTER_DIRECTORY, AdapterShape
from nld_train.training.checkpoint import megatron_save, retention
from nld_train.training.checkpoint import save as saving
from nld_train.training.checkpoint.megatron_save import Plan, Written, write_files
from nld_train.training.checkpoint.retention import apply_retention, make_room
from nld_train.training.metrics import jsonl, summary

Command = Callable[..., tuple[int, str]]
FULL = OSError(errno.ENOSPC, "No space left on device")
# As torch reports it, with the stack frames of its C++ below.
FULL_FOR_TORCH = RuntimeError(
    "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nframe #0: c10::Error"
)


def failing(error: Exception) -> Callable[..., Any]:
    """A file operation that fails."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def assert_one_line(status: int, errors: str, *pieces: str) -> None:
    assert status == 2
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: checkpoint ")
    for piece in ("could not be written by rank 0", "the previous checkpoint is unchanged", *pieces):
        assert piece in lines[0]


def test_a_folder_that_cannot_be_made(command: Command, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    status, errors = command(f"run.dir={tmp_path}", "checkpoint.every=1")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert errors.startswith(f"error: run.dir: {tmp_path / 'checkpoints'} cannot be read (Not a directory")
    assert (tmp_path / "checkpoints").read_text() == "in the way"


def test_a_shard_that_cannot_be_written(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line comes from the thread that writes; the checkpoint before stays."""

    def write_nowhere(plan: Plan) -> Written:
        directory = Path(plan.writer.checkpoint_dir)
        if directory.name == "step_00000002.tmp":
            shutil.rmtree(directory)
        return write_files(plan)

    monkeypatch.setattr(saving, "write_files", write_nowhere)
    assert_one_line(*command(f"run.dir={tmp_path}", "checkpoint.every=1"), "step_00000002.tmp", "No such file")
    assert newest_checkpoint(tmp_path).name == "step_00000001"


@pytest.mark.parametrize(
    ("owner", "name", "error", "message"),
    [
        (megatron_save, "write_common", FULL_FOR_TORCH, "RuntimeError: [enforce fail at inline_container.cc"),
        (FileSystemWriterAsync, "finish", FULL, "No space left on device"),
        (megatron_save, "save_config", FULL, "No space left on device"),
        (saving, "write_adapter", SafetensorError("Error while serializing: I/O error"), "SafetensorError"),
        (saving, "synchronise_all", FULL, "No space left on device"),
    ],
)
def test_a_small_file_that_cannot_be_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Any, message: str
) -> None:
    monkeypatch.setattr(owner, name, failing(error))
    monkeypatch.setattr(saving, "_adapters", lambda _: {DRAFTER_DIRECTORY: (AdapterShape(1, 1), {})})
    assert_one_line(*command(f"run.dir={tmp_path}", "run.max_steps=1"), "step_00000001 could not", message)
    assert not (tmp_path / "checkpoints" / "latest").exists()


def test_what_cannot_be_deleted_stays(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Old checkpoints, and a directory that a kill left under the name of the next one; the run is the same."""
    leftover = tmp_path / "checkpoints" / "step_00000002.tmp"
    leftover.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(retention.shutil, "rmtree", failing(OSError(errno.EBUSY, "Device or resource busy")))
        train(tmp_path, "checkpoint.every=1", "checkpoint.keep_last=1")
    message = capfd.readouterr().err
    checkpoints = tmp_path / "checkpoints"
    for path in (leftover, checkpoints / "step_00000001.tmp"):
        assert f"warning: {path} cannot be deleted (Device or resource busy); the run continues" in message
    assert "could not be written" not in message
    assert_same_run(tmp_path, whole)
    assert make_room(checkpoints / "step_00000009").name == "step_00000009.tmp"
    assert sorted(path.name for path in checkpoints.glob("*.tmp")) == ["step_00000009.tmp"]


def test_what_cannot_be_renamed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = tmp_path / "step_00000001", tmp_path / "step_00000002"
    older.mkdir()
    newest.mkdir()
    monkeypatch.setattr(os, "replace", failing(PermissionError(errno.EACCES, "Permission denied")))
    apply_retention(newest, CheckpointConfig(every=1, asynchronous=True, keep_last=1, keep_every=None))
    assert capsys.readouterr().err == f"warning: {older} cannot be deleted (Permission denied); the run continues\n"
    assert older.exists()


def test_a_file_system_that_cannot_synchronise_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.EINVAL, "Invalid argument")))
    synchronise(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        synchronise(tmp_path / "file")


def test_a_disk_that_is_full_is_called_so(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch reports a position in a file; and what was written of the checkpoint does not go on filling the disk."""
    monkeypatch.setattr(megatron_save, "write_common", failing(FULL_FOR_TORCH))
    monkeypatch.setattr(saving, "is_full", lambda _: True)
    assert_one_line(*command(f"run.dir={tmp_path}", "run.max_steps=1"), "by rank 0 (No space left on device);")
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.fixture(scope="module")
def one_step(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has made and saved one step."""
    return train(tmp_path_factory.mktemp("one"), "run.max_steps=1")


@pytest.mark.parametrize("moment", ["start", "step", "before a checkpoint", "summary", "report"])
def test_a_disk_that_is_full_at_another_moment(
    command: Command, one_step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """One line and code 2; what was saved before stays, and nothing half-written is left."""
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    settings = (f"run.dir={tmp_path}", "checkpoint.every=1", "run.max_steps=2")
    owner, name = {
        "start": (jsonl, "write_atomically"),
        "step": (jsonl.MetricsFile, "write"),
        "before a checkpoint": (jsonl.MetricsFile, "synchronise"),
        "summary": (summary, "write_atomically"),
        "report": (Figure, "savefig"),
    }[moment]
    before = (tmp_path / "report.png").read_bytes()
    with undrawn(), monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(FULL))
        status, errors = command(*settings)
    assert (status, len(errors.splitlines())) == (2, 1), errors
    assert errors.startswith("error: ")
    assert "No space left on device" in errors
    assert newest_checkpoint(tmp_path).name == f"step_0000000{2 if moment in ('summary', 'report') else 1}"
    assert (tmp_path / "report.png").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".lock"))]
    if moment == "step":
        with undrawn():
            assert command(*settings) == (0, "")


def test_what_a_kill_left_is_deleted_before_anything_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a disk which it filled has space again."""
    leftover = tmp_path / "checkpoints" / "step_00000002.tmp"
    leftover.mkdir(parents=True)
    (leftover / "__0_0.distcp").write_bytes(b"half")
    write = jsonl.write_atomically

    def check(path: Path, text: str) -> None:
        assert not leftover.exists()
        write(path, text)

    monkeypatch.setattr(jsonl, "write_atomically", check)
    train(tmp_path, "run.max_steps=1")
    assert f"checkpoint {leftover} was not written to its end; it is deleted" in capsys.readouterr().err


def test_a_file_that_cannot_be_replaced_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the error names the file that the user knows."""
    (tmp_path / "summary.json").write_text("old")
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_atomically(tmp_path / "summary.json", "new")
    assert raised.value.filename == str(tmp_path / "summary.json")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "old"
