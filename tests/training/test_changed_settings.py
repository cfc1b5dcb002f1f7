"""What may change when a run is continued: the settings of now are used, and each change is printed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from megatron.core.dist_checkpointing import load_common_state_dict
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint, records_of
from training_runs import AR_STEPS, Train

from nld_train.config.compose import compose_config
from nld_train.training.checkpoint.contents import Progress
from nld_train.training.checkpoint.resume import changed_settings

OTHER_RATES = ("stages.ar.schedule.learning_rate=1e-3", "stages.ar.schedule.final_learning_rate=1e-5")
OTHER_ADAM = ("optimizer.beta1=0.8", "optimizer.beta2=0.9", "optimizer.epsilon=1e-4", "optimizer.weight_decay=0.3")


def rates(directory: Path) -> list[float]:
    return [record["learning_rate"] for record in records_of(directory)]


def groups_of(directory: Path) -> list[dict[str, Any]]:
    """The optimizer's parameter groups in the newest checkpoint."""
    state = load_common_state_dict(str(newest_checkpoint(directory)))
    groups: list[dict[str, Any]] = state["optimizer"]["optimizer"]["param_groups"]
    return groups


def test_an_optimizer_has_the_settings_of_now(
    train: Train, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a stage: learning rates of the new schedule at once, and the other settings of Adam."""
    train(tmp_path / "new", *OTHER_RATES, f"run.max_steps={AR_STEPS}")
    train(tmp_path / "changed", "run.max_steps=2")
    capfd.readouterr()
    train(tmp_path / "changed", *OTHER_RATES, *OTHER_ADAM, f"run.max_steps={AR_STEPS}")
    assert rates(tmp_path / "changed") == [*rates(whole)[:2], *rates(tmp_path / "new")[2:]]
    assert rates(tmp_path / "new")[2:] != rates(whole)[2:AR_STEPS]
    groups = groups_of(tmp_path / "changed")
    assert {(group["max_lr"], group["min_lr"], *group["betas"], group["eps"]) for group in groups} == {
        (1e-3, 1e-5, 0.8, 0.9, 1e-4)
    }
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    assert {group["step"] for group in groups} == {AR_STEPS}
    output = " ".join(capfd.readouterr().out.split())
    for change in ("stages.ar.schedule.learning_rate: 0.002 -> 0.001", "optimizer.beta1: 0.9 -> 0.8"):
        assert change in output


def test_groups_that_megatron_finds_by_their_rates_are_found(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 0.19 does, which tells parameter groups apart by learning rates too."""
    from megatron.core.optimizer import distrib_optimizer

    keys = dict.fromkeys([*distrib_optimizer.param_group_identifier_keys, "max_lr", "min_lr"])
    monkeypatch.setattr(distrib_optimizer, "param_group_identifier_keys", tuple(keys))
    train(tmp_path, "run.max_steps=2")
    train(tmp_path, *OTHER_RATES, f"run.max_steps={AR_STEPS}")
    assert {(group["wd_mult"], group["max_lr"], group["step"]) for group in groups_of(tmp_path)} == {
        (1.0, 1e-3, AR_STEPS),
        (0.0, 1e-3, AR_STEPS),
    }


def test_only_what_decides_a_step_is_told() -> None:
    """Of stages that are not complete."""
    saved = compose_config(["run.name=a"])
    changes = [
        "stages.ar.kind=joint",
        "stages.ar.alpha=0.1",
        "stages.joint.alpha=0.5",
        "stages.joint.averaging=masked",
        "optimizer.clip_grad=2",
    ]
    aside = ["run.name=b", "checkpoint.every=7", "logging.every=3", "batch.micro_size=2", "data.workers=3"]
    now = compose_config([*changes, *aside])
    reported = [
        "stages.joint.alpha: 0.3 -> 0.5",
        "stages.joint.averaging: global -> masked",
        "optimizer.clip_grad: 1.0 -> 2.0",
    ]
    first = ["stages.ar.kind: ar -> joint", "stages.ar.alpha: 0.0 -> 0.1"]
    assert changed_settings(saved, Progress(4, "ar", 4, 4, {}), now) == reported
    assert changed_settings(saved, Progress(5, "joint", 1, 4, {}), now) == reported
    assert changed_settings(saved, Progress(3, "ar", 3, 4, {}), now) == first + reported
    assert changed_settings(saved, Progress(3, "ar", 3, 4, {}), saved) == []


def test_a_run_goes_on_without_what_it_started_from(train: Train, tmp_path: Path) -> None:
    """Its own checkpoints hold all weights."""
    train(tmp_path / "base", "run.max_steps=1")
    start = f"init.checkpoint={tmp_path / 'base'}"
    train(tmp_path / "whole", start)
    train(tmp_path / "stopped", start, "run.max_steps=2")
    shutil.rmtree(tmp_path / "base")
    assert_same_run(train(tmp_path / "stopped", start), tmp_path / "whole")
