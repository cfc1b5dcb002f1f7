"""Files of a run that cannot be read: one line, and the newest sound checkpoint where there is one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from run_equality import assert_same_run
from training_runs import Train

from nld_train.commands.status import main as status_command
from nld_train.errors import UserError
from nld_train.training.checkpoint.fallback import newest_sound_checkpoint
from nld_train.training.checkpoint.manifest import MANIFEST, find_damage, write_manifest
from nld_train.training.checkpoint.paths import find_checkpoint
from nld_train.training.metrics.wandb_log import _wandb_identity

pytestmark = pytest.mark.usefixtures("quick_reports")
Command = Callable[..., tuple[int, str]]
NEWEST, BEFORE = "step_00000002", "step_00000001"


@pytest.fixture(scope="module")
def stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("stopped"), "run.max_steps=2", "checkpoint.every=1", "checkpoint.keep_last=2")


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A run's directory with two checkpoints, to be damaged."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def forbid(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As mode 0 does for everybody but root: a function of `os` refuses a path."""
    before = getattr(os, name)

    def refuse(given: object, *arguments: object, **options: object) -> object:
        if str(given) == str(path):
            raise PermissionError(13, "Permission denied", str(given))
        return before(given, *arguments, **options)

    monkeypatch.setattr(os, name, refuse)


def make_folder(latest: Path) -> None:
    latest.mkdir()
    (latest / "mine").write_text("kept")


LATEST: dict[str, Callable[[Path], object]] = {
    "binary": lambda latest: latest.write_bytes(bytes(range(256)) * 40),
    "very long": lambda latest: latest.write_text("step_" * 100_000),
    "zeros": lambda latest: latest.write_bytes(b"\0" * 4096),
    "folder": make_folder,
    "pipe": os.mkfifo,
    "link to itself": lambda latest: latest.symlink_to(latest),
    "another name": lambda latest: latest.write_text("step_best\n"),
    "a path": lambda latest: latest.write_text("../checkpoints/step_00000002"),
    "escapes": lambda latest: latest.write_text("\x1b[2Jstep_00000001"),
    "a step that is gone": lambda latest: latest.write_text("step_00000007"),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", [*LATEST, "no permission"])
def test_a_broken_latest(
    run: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start uses the newest sound checkpoint and says so; conversion and decoding refuse, in one line."""
    checkpoints = run / "checkpoints"
    (checkpoints / "latest").unlink()
    if kind == "no permission":
        (checkpoints / "latest").touch()
        forbid(checkpoints / "latest", monkeypatch, "open")
    else:
        LATEST[kind](checkpoints / "latest")
    assert newest_sound_checkpoint(checkpoints) == checkpoints / NEWEST
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{checkpoints / 'latest'} ")
    assert line.endswith(f"; {NEWEST} is used")
    assert line.isprintable()
    assert len(line) < 400
    with pytest.raises(UserError, match="latest"):
        find_checkpoint(run)


def test_a_folder_in_place_of_latest(command: Command, run: Path, whole: Path) -> None:
    """The run goes on, names its checkpoints again, and keeps what is in the folder."""
    latest = run / "checkpoints" / "latest"
    latest.unlink()
    make_folder(latest)
    status, errors = command(f"run.dir={run}")
    assert status == 0
    assert errors.splitlines() == [f"{latest} cannot be read (is not a regular file); {NEWEST} is used"]
    assert_same_run(run, whole)
    assert (latest.with_name("latest.unreadable") / "mine").read_text() == "kept"


def test_folders_in_place_of_the_other_files(command: Command, run: Path, whole: Path) -> None:
    """The run keeps them under other names and writes its own."""
    names = ("run.log", "summary.json", "report.png")
    for name in names:
        (run / name).unlink(missing_ok=True)
        make_folder(run / name)
    status, errors = command(f"run.dir={run}")
    assert status == 0
    assert errors.splitlines() == [
        f"warning: {run / name} is not a file and is renamed to {name}.unreadable" for name in names
    ]
    assert_same_run(run, whole)
    for name in names:
        assert (run / name).is_file()
        assert (run / f"{name}.unreadable" / "mine").read_text() == "kept"


def test_checkpoints_that_cannot_be_listed(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """To begin again would write over them."""
    forbid(run / "checkpoints", monkeypatch, "scandir")
    before = (run / "metrics.jsonl").read_bytes()
    status, errors = command(f"run.dir={run}")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert f"run.dir: {run / 'checkpoints'} cannot be read (Permission denied" in errors
    assert (run / "metrics.jsonl").read_bytes() == before
    assert status_command([str(run)]) == 2
    assert capfd.readouterr().err == f"error: Permission denied: {run / 'checkpoints'}\n"


MANIFESTS = (
    '{"files": {}}',
    '{"files": {"model.json": [1, "x"]}}',
    '{"files": {"model.json": [1e999, "x"]}}',
    '{"files": {"model.json": [' + "9" * 5000 + ', "x"]}}',
    '{"files": 3}',
    "[" * 100_000,
    "\0" * 100,
)


@pytest.mark.parametrize("content", MANIFESTS, ids=range(len(MANIFESTS)))
def test_a_manifest_that_lists_no_checkpoint(run: Path, content: str, capfd: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints" / NEWEST
    (newest / MANIFEST).write_text(content)
    assert str(find_damage(newest)).startswith(MANIFEST)
    assert status_command([str(run)]) == 0
    printed = capfd.readouterr().out
    assert "DAMAGED" in printed
    assert "step 1 of the run" in printed


def test_a_pipe_in_place_of_a_manifest(run: Path) -> None:
    """Reading it would wait for ever."""
    newest = run / "checkpoints" / NEWEST
    (newest / MANIFEST).unlink()
    os.mkfifo(newest / MANIFEST)
    assert find_damage(newest) == f"{MANIFEST} cannot be read (is not a regular file)"


def test_checkpoints_on_a_disk_that_is_not_there(command: Command, run: Path, tmp_path: Path) -> None:
    """`checkpoints` is a link to it; the run does not begin again."""
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(tmp_path / "gone")
    status, errors = command(f"run.dir={run}")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert f"run.dir: {run / 'checkpoints'} cannot be read (No such file or directory" in errors


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("content", ["{}", "[]", "\0", '{"step": "2", "stage": "ar"}'])
def test_a_progress_file_that_says_nothing(run: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Written by hand, with a manifest that fits."""
    newest = run / "checkpoints" / NEWEST
    (newest / "progress.json").write_text(content)
    (newest / MANIFEST).unlink()
    write_manifest(newest, {})
    assert newest_sound_checkpoint(newest.parent) == newest.with_name(BEFORE)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"checkpoint {newest} is damaged: progress.json")
    assert status_command([str(newest.parent.parent)]) == 0


def test_settings_that_are_no_text(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`nld-status` compares sizes only, and takes the settings of the checkpoint before."""
    path = run / "checkpoints" / NEWEST / "config.yaml"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert status_command([str(run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["checkpoints"][0]["step"] == 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a/b", b"x" * 10_000])
def test_an_identity_file_that_holds_none(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    identity = _wandb_identity(tmp_path)
    assert identity.isalnum()
    assert "is renamed to wandb_id.unreadable" in capsys.readouterr().err
    assert (tmp_path / "wandb_id.unreadable").read_bytes() == content
    assert _wandb_identity(tmp_path) == identity
