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


@pytest.mark.long
def test_a_launcher_starts_the_jobs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """submitit starts each in a process of its own, as it would under Slurm; their plans are in its logs."""
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    words = [*SWEEP, f"run.dir={tmp_path}/sweep", "run.dry=true", "hydra/launcher=submitit_local"]
    assert train.main([*words, "hydra.launcher.timeout_min=2"]) == 0
    shown = capfd.readouterr().out
    assert shown.count("finished") == 2
    logs = sorted((tmp_path / "sweep/.sweep/.submitit").glob("*/*_log.out"))
    plans = [log.read_text() for log in logs]
    assert [alpha for plan in plans for alpha in ("0.1", "0.3") if f"stages.joint.alpha-{alpha}" in plan] == [
        "0.1",
        "0.3",
    ]


def test_a_launched_job_that_fails_is_in_the_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher is replaced by Hydra's own; of one job the result, of the other nothing comes back."""
    from nld_train.commands import launched_sweep

    results = iter([(2, "failed: no space left"), (0, "finished")])

    def run(composed: object, words: object, run_composed: object) -> None:
        from hydra.core.hydra_config import HydraConfig

        status, result = next(results)
        if status:
            path = Path(HydraConfig.get().sweep.dir) / f"result-{HydraConfig.get().job.num}.json"
            path.write_text(json.dumps({"status": status, "result": result}))

    monkeypatch.setattr(launched_sweep, "run_launched", run)
    monkeypatch.setattr(launched_sweep, "_BASIC", "no launcher")
    assert train.main([*SWEEP, f"run.dir={tmp_path}/sweep", "hydra/launcher=basic"]) == 2
    shown = " ".join(capfd.readouterr().out.split())
    assert "failed: no space left" in shown
    assert "ended without a result" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/launcher=submitit_local"], "give --multirun"),
        (["--multirun", "hydra/launcher=submitit_local", "stages.joint.alpha=0.1,-1"], "stages.joint.alpha"),
        (["--multirun", "hydra/launcher=submitit_slurm", "stages.joint.alpha=0.1,0.2"], "no sbatch"),
        (["--multirun", "hydra/launcher=unknown", "stages.joint.alpha=0.1,0.2"], "hydra/launcher"),
    ],
)
def test_launchers_that_are_refused(
    words: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    assert train.main([*words, f"run.dir={tmp_path}/sweep"]) == 2
    captured = capfd.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
