"""`metrics.jsonl` with damaged or missing lines: every reader skips and names them, and the run goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_equality import assert_same_tensors
from tiny_runs import newest_checkpoint, records_of
from training_runs import Train

from nld_train.commands.status import main as status_command
from nld_train.monitoring.run_status import run_status
from nld_train.training.metrics.jsonl import read_metrics
from nld_train.training.metrics.report import write_report
from nld_train.training.metrics.summary import write_summary

pytestmark = pytest.mark.usefixtures("quick_reports")
Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("stopped"), "run.max_steps=6")


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A run's directory with six steps and a checkpoint of the last one, to be damaged."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def replace_lines(run: Path, lines: dict[int, bytes]) -> None:
    before = (run / "metrics.jsonl").read_bytes().splitlines()
    after = [lines.get(number, line) for number, line in enumerate(before, start=1)]
    (run / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in after if line))


def test_a_bad_line_in_the_metrics(command: Command, run: Path, whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Zeros of a file system, half a line, a number in place of a record; status, start, summary and report go on."""
    replace_lines(run, {2: b"\0" * 300, 3: b'{"stage": "ar", "st', 5: b"17"})
    named, missing = "metrics.jsonl: lines 2, 3, 5 are damaged", "metrics.jsonl: steps 2 to 3, 5 are missing"
    assert run_status(run)["problems"] == [named, missing]
    assert status_command([str(run)]) == 0
    printed = capfd.readouterr().out
    assert "lines 2, 3, 5 are damaged" in printed
    assert "steps 2 to 3, 5 are missing" in printed
    status, errors = command(f"run.dir={run}")
    assert status == 0
    path = run / "metrics.jsonl"
    assert errors.splitlines() == [
        f"warning: {path}: lines 2, 3, 5 are damaged; the run continues",
        f"warning: {path}: steps 2 to 3, 5 are missing; the run continues",
    ]
    assert_same_tensors(newest_checkpoint(run), newest_checkpoint(whole))
    assert [record["step"] for record in records_of(run)] == [1, 4, 6, 7, 8]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["problems"] == [missing]
    assert summary["stages"]["ar"]["steps"] == 2


def test_a_loss_of_power_that_left_no_metrics(command: Command, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The summary says what it does not have."""
    (run / "metrics.jsonl").write_bytes(b"")
    assert run_status(run)["problems"] == ["metrics.jsonl: steps 1 to 6 are missing"]
    capfd.readouterr()
    status, errors = command(f"run.dir={run}")
    assert (status, errors.count("\n")) == (0, 1)
    assert "steps 1 to 6 are missing" in errors
    assert json.loads((run / "summary.json").read_text())["problems"] == ["metrics.jsonl: steps 1 to 6 are missing"]


def test_the_end_of_a_run_names_what_the_summary_lacks(
    run: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_lines(run, {4: b""})
    train(run)
    printed = capsys.readouterr().out
    assert "warning: metrics.jsonl: step 4 is missing, and in no figure of the summary" in printed


@pytest.mark.parametrize("kind", ["folder", "no permission"])
def test_metrics_that_cannot_be_read(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are renamed, and the newest checkpoint is continued."""
    path = run / "metrics.jsonl"
    if kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        forbid_reading(path, monkeypatch)
    reason = "is not a regular file" if kind == "folder" else "Permission denied"
    assert run_status(run)["problems"] == [f"metrics.jsonl: cannot be read ({reason})"]
    assert status_command([str(run), "--json"]) == 0
    capfd.readouterr()
    status, errors = command(f"run.dir={run}")
    assert status == 0, errors
    assert errors.splitlines() == [
        f"warning: {path}: cannot be read ({reason}), renamed to metrics.jsonl.unreadable; the run continues"
    ]
    assert path.with_name("metrics.jsonl.unreadable").exists()
    assert [record["step"] for record in records_of(run)] == [7, 8]


def forbid_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mode 0 does for everybody but root, until the file is replaced."""
    inode, before = path.stat().st_ino, os.open

    def refuse(name: object, *arguments: int, **options: int) -> int:
        if str(name) == str(path) and path.exists() and path.stat().st_ino == inode:
            raise PermissionError(13, "Permission denied", str(name))
        return before(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)


def test_metrics_are_on_the_disk_before_their_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power takes no step that a checkpoint has."""
    flushed: list[int] = []
    named: list[tuple[int, int]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path / "metrics.jsonl":
            flushed.append(len(records_of(tmp_path)))

    def note_replace(source: str | Path, target: str | Path) -> None:
        if Path(target).name.startswith("step_"):
            named.append((int(Path(target).name[-8:]), flushed[-1]))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    train(tmp_path, "run.max_steps=4", "checkpoint.every=2", "checkpoint.asynchronous=false")
    assert named == [(2, 2), (4, 4)]


def test_records_that_two_runs_wrote(run: Path) -> None:
    """Each step counts once, in order, whoever wrote it last."""
    records = records_of(run)
    repeated = [*records, *(record | {"loss": 9.0} for record in records[3:])]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in repeated))
    content = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in content.records] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in content.records[3:]] == [9.0] * 3
    assert content.problems == []


def test_a_measurement_of_another_form(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Summary, report and status leave it out and name it; the step counts."""
    lines = records_of(run)
    lines[1]["validation"], lines[2]["decoding"], lines[3]["drafter"] = "x", {"modes": 3}, [1]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    problems = write_summary(run)["problems"]
    names = (("validation", 2), ("decoding", 3), ("drafter", 4))
    assert problems == [f"metrics.jsonl: {name} of step {step} is damaged" for name, step in names]
    assert write_report(run).exists()
    assert status_command([str(run)]) == 0
    assert "decoding of step 3 is damaged" in capfd.readouterr().out


@pytest.mark.parametrize(
    "line",
    [b"null", b"[1]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b'{"step": "1"}'],
    ids=["null", "list", "empty", "not text", "deep", "long number", "text as a step"],
)
def test_lines_that_are_no_records(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n")
    assert read_metrics(tmp_path / "metrics.jsonl").problems == ["line 1 is damaged"]


def test_many_damaged_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"x\n" * 100)
    assert read_metrics(tmp_path / "metrics.jsonl", reached=4).problems == [
        "lines 1, 2, 3, 4, 5, 95 more are damaged",
        "steps 1 to 4 are missing",
    ]
