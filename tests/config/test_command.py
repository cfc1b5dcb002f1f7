"""The command `nld-train` as a user runs it, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Finished, run_forked

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "megatron", "transformers", "transformer_engine", "numpy", "wandb", "datasets", "matplotlib")
# Runs the command, then says on the error stream which heavy packages it imported.
PROBE = f"""
import sys
from nld_train.commands.train import main
status = main()
print("imported:", [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


def _run(directory: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=directory,
        env={**variables, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _train(directory: Path, *overrides: str, **environment: str) -> Finished:
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return run_forked(["-m", "nld_train.train", *overrides], 60, directory, {**variables, **environment}, apart=True)


@pytest.mark.parametrize(
    ("experiment", "pieces"),
    [
        ("quickstart", ["854,144", "random weights"]),
        pytest.param(
            "paper_3b",
            ["3.83B", "476,838", "1,000,001,765,376", "143,052", "300,001,787,904", "tensor 1 ", "data 256"],
            marks=pytest.mark.long,
        ),
        ("paper_8b", ["8.49B", "2,097,152 tokens per step", "tensor 2 ", "data 128", "4 of 1 per process"]),
        ("paper_14b", ["13.51B", "512 samples x 4,096 tokens", "tensor 2 ", "context 2 ", "data 64"]),
        pytest.param("ablation_8b", ["8.49B", "11,921", "25,000,148,992"], marks=pytest.mark.long),
    ],
)
def test_dry_run_prints_the_plan_and_imports_nothing_heavy(tmp_path: Path, experiment: str, pieces: list[str]) -> None:
    done = _run(tmp_path, "-c", PROBE, f"experiment={experiment}", "run.dry=true")
    assert done.returncode == 0, done.stderr
    for piece in pieces:
        assert piece in done.stdout
    assert done.stderr == "imported: []\n"
    assert list(tmp_path.iterdir()) == []


def test_help_lists_experiments_and_settings(tmp_path: Path) -> None:
    done = _run(tmp_path, "-m", "nld_train.train", "--help")
    assert done.returncode == 0
    for piece in (
        "ablation_8b, ablation_small, ",
        "paper_8b, quickstart, sft_14b",
        "global_size: 8",
        "run.dry=true",
    ):
        assert piece in done.stdout


@pytest.mark.parametrize(
    ("overrides", "pieces"),
    [
        (["batch.global_sise=3"], ["batch.global_sise", "'global_size'"]),
        (["experiment=paper_9b"], ["experiment=paper_9b", "paper_8b"]),
        (["experiment=paper_8b"], ["data.train", "prefix"]),
        (["parallel.pipeline=3"], ["parallel.pipeline=3", "valid: 1, 2, 4"]),
        (["batch.micro_size=many"], ["batch.micro_size='many'", "an integer"]),
        (["run.stages=[ar"], ["run.stages=[ar"]),
        (["--multirun", "stages.joint.averaging=global,mean", "run.dry=true"], ["stages.joint.averaging='mean'"]),
        (["--multirun", "run.max_steps=1,2"], ["run.dir"]),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, overrides: list[str], pieces: list[str]) -> None:
    done = _train(tmp_path, *overrides)
    assert done.status == 2
    assert done.output == ""
    assert done.errors.startswith("error: ")
    assert done.errors.count("\n") == 1
    for piece in pieces:
        assert piece in done.errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (["--resolve"], "--resolve flag can only be used"),
        (["--multirun", "--resolve"], "--resolve flag can only be used"),
        (["--cfg", "job", "--multirun"], "Only one of"),
        (["--cfg", "none"], "--cfg"),
        (["--info", "none"], "--info"),
        (["--shell-completion"], "Expecting one subcommand"),
        (["--experimental-rerun", "none"], "File none does not exist"),
        (["--config-dir", "none"], "not found"),
        (["--config-name", "none"], "configuration=none"),
    ],
)
def test_a_flag_of_hydra_that_cannot_be_followed_is_one_line(tmp_path: Path, words: list[str], piece: str) -> None:
    done = _train(tmp_path, *words)
    assert done.status == 2, done.errors
    assert done.output == ""
    last = done.errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert piece in last
    assert "Traceback" not in done.errors


def test_a_folder_of_ones_own_settings(tmp_path: Path) -> None:
    (tmp_path / "settings" / "stages").mkdir(parents=True)
    shipped = re.sub(r"tokens: \S+", "tokens: 4.0e+06", (ROOT / "configs/stages/quickstart.yaml").read_text())
    (tmp_path / "settings" / "stages" / "long.yaml").write_text(shipped)
    done = _train(tmp_path, "--config-dir", "settings", "stages=long", "run.dry=true")
    assert done.status == 0, done.errors
    assert "4,001,792" in done.output
    done = _train(tmp_path, "--config-dir", "settings", "stages=longer", "run.dry=true")
    assert done.status == 2
    assert (
        "valid: ablation, ablation_small, drafter, drafter_quickstart, instruct_quickstart, long, paper, quickstart, "
        "sft, sft_lora" in done.errors
    )


def test_one_process_of_many_speaks(tmp_path: Path) -> None:
    first = _train(tmp_path, RANK="0", WORLD_SIZE="3")
    other = _train(tmp_path, RANK="1", WORLD_SIZE="3")
    assert (first.status, other.status) == (2, 2)
    assert first.errors.startswith("error: batch.global_size=8: ")
    assert other.errors == other.output == ""


@pytest.mark.parametrize("place", [0, 1, 3])
def test_sweep_plans_each_job_in_a_folder_of_its_own(tmp_path: Path, place: int) -> None:
    words = ["stages.joint.alpha=0.1,0.3", "run.dir=here", "run.dry=true"]
    words.insert(place, "--multirun")
    done = _train(tmp_path, *words)
    assert done.status == 0, done.errors
    assert done.output.count("Plan of quickstart") == 2
    for alpha in ("0.1", "0.3"):
        assert f" here/stages.joint.alpha-{alpha} " in done.output
    assert list(tmp_path.iterdir()) == []
