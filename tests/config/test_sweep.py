"""The jobs of a sweep: their names, and the table at its end."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import composed

from nld_train.commands import train
from nld_train.commands.sweep import Ended, print_jobs
from nld_train.config.schema import Config
from nld_train.console import plain_console
from nld_train.errors import UserError

SWEEP = ("--multirun", "stages.joint.alpha=0.1,0.3", "run.max_steps=1", "logging.wandb.mode=disabled")


def job_of(directory: Path) -> Config:
    config = composed("run.name=sweep")
    return replace(config, run=replace(config.run, dir=str(directory)))


def write_summary(directory: Path, ar: float, diffusion: float | None) -> None:
    directory.mkdir(parents=True)
    stages = {
        "ar": {"steps": 1000, "last_ar_loss": 9.0, "last_diffusion_loss": None},
        "joint": {"steps": 234, "last_ar_loss": ar, "last_diffusion_loss": diffusion},
    }
    (directory / "summary.json").write_text(json.dumps({"stages": stages}))


def test_a_sweep_ends_with_a_table_of_its_jobs(tmp_path: Path) -> None:
    write_summary(tmp_path / "sweep/alpha-0.1", 1.5, 2.25)
    jobs = [
        Ended(job_of(tmp_path / "sweep/alpha-0.1"), "finished"),
        Ended(job_of(tmp_path / "sweep/alpha-0.3"), "failed: no space left"),
    ]
    shown = io.StringIO()
    print_jobs(jobs, 3, plain_console(file=shown, width=120))
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.getvalue().splitlines()]
    assert ["job", "result", "steps", "AR loss", "diffusion loss"] in lines
    assert ["alpha-0.1", "finished", "1,234", "1.5000", "2.2500"] in lines
    assert ["alpha-0.3", "failed: no space left"] in lines
    assert ["1 of 3 jobs were not begun"] in lines


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The jobs that a command line starts; the second one fails."""
    found: list[Config] = []

    def start(config: Config, world_size: int) -> int:
        found.append(config)
        if len(found) == 2:
            raise UserError("data.train: is empty")
        return 0

    monkeypatch.setattr(train, "_start", start)
    return found


def test_each_job_has_a_name_of_its_own(
    started: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SWEEP, f"run.dir={tmp_path}/sweep", "run.name=alphas"]) == 2
    names = [f"stages.joint.alpha-{alpha}" for alpha in ("0.1", "0.3")]
    assert [config.run.name for config in started] == [f"alphas {name}" for name in names]
    assert [config.run.dir for config in started] == [f"{tmp_path}/sweep/{name}" for name in names]
    captured = capsys.readouterr()
    rows = [re.split(r"\s{2,}", line.strip()) for line in captured.out.splitlines()]
    assert [names[0], "finished"] in rows
    assert [names[1], "failed: data.train: is empty"] in rows
    assert captured.err == "error: data.train: is empty\n"


def test_a_single_run_has_its_own_name_and_no_table(
    started: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SWEEP[2:], f"run.dir={tmp_path}/run", "run.name=one"]) == 0
    assert [(config.run.name, config.run.dir) for config in started] == [("one", f"{tmp_path}/run")]
    assert capsys.readouterr().out == ""
