"""`nld-status` on runs that wait, run, stopped, died and finished."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import TINY_MODEL, data_overrides, records_of, train_here, two_stages, write_token_set

from nld_train.commands.status import main
from nld_train.monitoring.run_status import run_status
from nld_train.monitoring.spikes import find_spikes
from nld_train.training.metrics.jsonl import read_metrics
from nld_train.training.run_lock import RunLock

PROBE = """
import sys
from nld_train.commands.status import main
status = main()
heavy = ("torch", "megatron", "transformers", "numpy", "wandb", "matplotlib")
print("imported:", [name for name in heavy if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    prefix = write_token_set(tmp_path_factory.mktemp("tokens") / "train", seed=1)
    decoding = ("evaluation.every=2", "evaluation.modes=[ar,diffusion]", "evaluation.prompts=2")
    lengths = ("evaluation.prompt_tokens=4", "evaluation.max_new_tokens=6", "evaluation.block_length=4")
    own = ("validation.every=2", "checkpoint.every=2", "checkpoint.keep_last=null")
    return (*TINY_MODEL, *data_overrides(prefix), *two_stages(4, 4), *decoding, *lengths, *own)


@pytest.fixture(scope="module")
def finished(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nld_train.config.compose import compose_config
    from nld_train.training.loop import run

    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert run.train(compose_config([f"run.dir={directory}", *settings])) == 0
    return directory


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run(finished: Path) -> None:
    found, last = run_status(finished), records_of(finished)[-1]
    assert found["state"] == "finished"
    assert found["total_steps"] == 8
    assert (found["last"]["stage"], found["last"]["step"], found["last"]["stage_step"]) == ("joint", 8, 4)
    assert (found["last"]["stage_steps"], found["last"]["tokens"]) == (4, last["tokens"])
    assert found["last"]["validation"] == {"step": 8, **last["validation"]}
    modes = found["last"]["decoding"]["modes"]
    assert modes["diffusion"]["tokens_per_forward"] == last["decoding"]["modes"]["diffusion"]["tokens_per_forward"]
    joint = [record for record in records_of(finished) if record["stage"] == "joint"]
    assert found["last"]["ar_loss"] == pytest.approx(sum(record["ar_loss"] for record in joint) / 4)
    (checkpoint,) = found["checkpoints"]
    assert (checkpoint["step"], checkpoint["ends_stage"], checkpoint["damage"]) == (8, True, None)


def test_the_table_has_it_all(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished)]) == 0
    printed = capfd.readouterr().out
    for piece in (
        "finished",
        "joint, step 4 of 4",
        "8 of 8 (100.0%)",
        "1,536",
        "t=0.25",
        "diffusion 1.",
        "sound",
        "none",
    ):
        assert piece in printed, piece


def test_json_is_the_same(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished), "--json", "--checksums"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert (found["state"], found["last"]["step"]) == ("finished", 8)


def test_a_stopped_run_goes_on_or_dies(settings: tuple[str, ...], tmp_path: Path) -> None:
    directory = train_here(tmp_path / "run", *settings, "evaluation.every=0", "run.max_steps=3")
    found = run_status(directory)
    assert (found["state"], found["last"]["step"], found["total_steps"]) == ("stopped", 3, 8)
    assert found["last"]["seconds_left"] > 0
    # It is continued: a step is written, half a line is being written.
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**records_of(directory)[-1], "step": 4}) + '\n{"stage": "jo')
    after = (directory / "summary.json").stat().st_mtime + 10
    os.utime(directory / "metrics.jsonl", (after, after))
    lock = RunLock(directory)
    found = run_status(directory)
    assert (found["state"], found["last"]["step"]) == ("running", 4)
    assert found["process"] == {"process": os.getpid(), "host": socket.gethostname()}
    # Nobody has written for an hour.
    hour_ago = time.time() - 3600
    for name in ("metrics.jsonl", "summary.json"):
        os.utime(directory / name, (hour_ago - (name == "summary.json"), hour_ago - (name == "summary.json")))
    found = run_status(directory)
    assert found["state"] == "silent"
    assert found["seconds_since_last_record"] == pytest.approx(3600, abs=60)
    lock.release()


def test_a_killed_run_is_not_running(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At once, on its own machine; one that has only just started as well."""
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints")
    lock = RunLock(copy)
    assert run_status(copy)["state"] == "running"
    os.close(lock._descriptor)  # what a kill does: the file stays
    found = run_status(copy)
    assert (found["state"], found["process"]) == ("died", None)
    (copy / "metrics.jsonl").write_text("")
    assert run_status(copy)["state"] == "died"
    assert main([str(copy)]) == 0
    assert "ended without saving" in capfd.readouterr().out
    lock = RunLock(copy)
    assert run_status(copy)["state"] == "starting"
    lock.release()


def test_a_run_of_an_earlier_version_may_be_running(copy: Path) -> None:
    """It had neither a lock nor its settings in its directory."""
    for name in ("config.yaml", "summary.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "checkpoints")
    assert run_status(copy)["state"] == "running"


def test_before_the_first_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert run_status(tmp_path)["state"] == "not started"
    assert main([str(tmp_path)]) == 0
    assert "no step yet" in capfd.readouterr().out


def test_before_the_first_checkpoint(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The settings of the last start say how many steps there will be."""
    shutil.rmtree(copy / "checkpoints")
    found = run_status(copy)
    assert (found["total_steps"], found["checkpoints"]) == (8, [])
    assert main([str(copy)]) == 0
    printed = capfd.readouterr().out
    assert "none yet" in printed
    assert "8 of 8 (100.0%)" in printed


def test_damage_is_reported_with_the_sound_one_before_it(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    newest, before = (copy / "checkpoints" / f"step_0000000{step}" for step in (8, 6))
    (newest / "common.pt").write_bytes((newest / "common.pt").read_bytes()[:-1])
    (copy / "checkpoints/step_00000009.tmp").mkdir()
    found = run_status(copy)
    assert [entry["path"] for entry in found["checkpoints"]] == [str(newest), str(before)]
    assert "common.pt has" in found["checkpoints"][0]["damage"]
    assert found["checkpoints"][1]["damage"] is None
    assert found["state"] != "finished"
    assert found["unfinished_checkpoints"] == ["step_00000009"]
    assert main([str(copy)]) == 0
    printed = capfd.readouterr().out
    assert "DAMAGED" in printed
    assert "step_00000009 is being written" in printed


def test_settings_of_an_older_version_are_read(copy: Path, finished: Path) -> None:
    """It knew fewer keys, and one that is gone."""
    (copy / "config.yaml").unlink()
    path = copy / "checkpoints/step_00000008/config.yaml"
    settings = yaml.safe_load(path.read_text())
    for group, key in (
        ("parallel", "overlap_tensor"),
        ("execution", "fp8"),
        ("optimizer", "moments"),
        ("init", "required"),
    ):
        del settings[group][key]
    del settings["evaluation"]
    settings["execution"]["gone"] = 1
    path.write_text(yaml.safe_dump(settings))
    found, now = run_status(copy), run_status(finished)
    assert (found["name"], found["total_steps"]) == (now["name"], 8)
    assert found["last"]["stage_steps"] == 4


def test_only_checksums_find_changed_bytes(copy: Path) -> None:
    file = next((copy / "checkpoints/step_00000008").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert run_status(copy)["checkpoints"][0]["damage"] is None
    assert "checksum" in run_status(copy, read_all=True)["checkpoints"][0]["damage"]


def test_no_run_is_one_line(tmp_path: Path, copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for directory, piece in ((tmp_path / "none", "is no directory"), (tmp_path, "has runs inside: run")):
        assert main([str(directory)]) == 2
        printed = capfd.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert printed.err.startswith(f"error: {directory}: ")
        assert piece in printed.err


def test_it_imports_nothing_heavy(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(finished)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "imported: []\n"


def _steps(values: list[float], stage: str = "ar", first: int = 1) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "step": first + index, "loss": value, "grad_norm": 1.0} for index, value in enumerate(values)
    ]


def test_spikes() -> None:
    usual = [3.0 + 0.02 * (index % 5) for index in range(40)]
    assert find_spikes(_steps(usual)) == []
    (spike,) = find_spikes(_steps([*usual, 4.5, *usual]))
    assert (spike.step, spike.quantity, spike.value) == (41, "loss", 4.5)
    assert spike.usual == pytest.approx(3.04)
    # A fall is none; neither is another stage's other loss, nor a rise too small to matter.
    assert find_spikes(_steps([*usual, 1.0])) == []
    assert find_spikes([*_steps(usual), *_steps([9.0] * 40, "joint", 41)]) == []
    assert find_spikes(_steps([*[3.0] * 40, 3.2])) == []


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    figures = dict.fromkeys(("stage_step", "tokens", "step_tokens", "learning_rate", "seconds", "seconds_left"), 1)
    records = [record | figures | {"tokens_per_second": 1.0} for record in _steps([3.0] * 1000)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [record["step"] for record in read_metrics(path).records] == list(range(1, 1001))
    content = read_metrics(path, most_bytes=3000)
    some = [record["step"] for record in content.records]
    assert some == list(range(some[0], 1001))
    assert 10 < len(some) < 20
    assert content.problems == []
