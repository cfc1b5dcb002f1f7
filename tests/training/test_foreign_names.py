"""Files and folders beside the checkpoints that the run did not make: never read, counted, renamed or deleted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint
from training_runs import Train

from nld_train.commands.status import main as status_command
from nld_train.config.schema import CheckpointConfig
from nld_train.training.checkpoint.paths import (
    find_checkpoint,
    step_of_name,
    unfinished_checkpoints,
    written_checkpoints,
)
from nld_train.training.checkpoint.retention import apply_retention

pytestmark = pytest.mark.usefixtures("quick_reports")
Command = Callable[..., tuple[int, str]]
# What users and their tools leave there; sorted as text most of them come after every checkpoint.
FOLDERS = ("step_best", "step_00000002_backup", "step_00000002.tmp.old", "step_2", "step_000000099", "best.tmp")
FILES = ("step_00000001", "step_00000002.tar", "step_99999999.zip", "step_notes.txt", "step_00000002.tmp.gz")


@pytest.fixture(scope="module")
def stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("stopped"), "run.max_steps=3")


def place(checkpoints: Path, sound: Path) -> list[Path]:
    """Puts something under each name; the folders are copies of a checkpoint."""
    for name in FOLDERS:
        shutil.copytree(sound, checkpoints / name)
    for name in FILES:
        (checkpoints / name).write_bytes(name.encode())
    return [*(checkpoints / name / "model.json" for name in FOLDERS), *(checkpoints / name for name in FILES)]


def test_a_run_goes_on_beside_step_best_and_a_backup(
    command: Command, stopped: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From its own newest checkpoint, with retention, and `nld-status` reads it."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = {path: path.read_bytes() for path in place(run / "checkpoints", newest_checkpoint(stopped))}
    assert status_command([str(run)]) == 0
    assert "step 3 of the run" in capfd.readouterr().out
    status, errors = command(f"run.dir={run}", "checkpoint.every=2", "checkpoint.keep_last=1")
    assert (status, errors) == (0, "")
    assert_same_run(run, whole)
    assert {path: path.read_bytes() for path in before} == before
    assert find_checkpoint(run) == run / "checkpoints" / "step_00000008"


def test_checkpoints_are_in_numerical_order(tmp_path: Path) -> None:
    """Beyond eight digits too, in each of the functions that list them."""
    for name in ("step_99999999", "step_100000000", "step_00000009", "step_100000000.2.tmp", "step_00000010.tmp"):
        (tmp_path / name).mkdir()
    assert [step_of_name(path.name) for path in written_checkpoints(tmp_path)] == [100_000_000, 99_999_999, 9]
    assert len(unfinished_checkpoints(tmp_path)) == 2
    rules = CheckpointConfig(every=1, asynchronous=True, keep_last=1, keep_every=None)
    apply_retention(tmp_path / "step_100000000", rules)
    assert [path.name for path in written_checkpoints(tmp_path)] == ["step_100000000"]


def test_a_linked_checkpoint_is_not_deleted(tmp_path: Path) -> None:
    """It was moved to another disk, to be kept."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "checkpoints" / "step_00000002").mkdir()
    rules = CheckpointConfig(every=1, asynchronous=True, keep_last=1, keep_every=None)
    apply_retention(tmp_path / "checkpoints" / "step_00000002", rules)
    assert (tmp_path / "checkpoints" / "step_00000001").is_dir()


def test_an_archive_with_the_name_of_a_later_checkpoint(command: Command, stopped: Path, tmp_path: Path) -> None:
    """Refused at the start, and not renamed when the run reaches that step."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    (run / "checkpoints" / "step_00000008").write_bytes(b"archive")
    status, errors = command(f"run.dir={run}")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert f"{run / 'checkpoints' / 'step_00000008'} is not a checkpoint, and has the name of one" in errors
    assert (run / "checkpoints" / "step_00000008").read_bytes() == b"archive"
