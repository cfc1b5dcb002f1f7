"""A run that was stopped and started again is the run that never stopped, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint, records_of, saved_tensors
from training_runs import AR_STEPS, JOINT_STEPS, Train

from nld_train.training.loop import run as loop

STEPS = AR_STEPS + JOINT_STEPS


def test_a_checkpoint_holds_weights_and_optimizer_state(whole: Path) -> None:
    tensors = saved_tensors(newest_checkpoint(whole))
    assert tensors["embedding.word_embeddings.weight"].shape == (67, 32)
    averages = [name for name in tensors if "exp_avg" in name]
    assert averages
    assert all(tensors[name].any() for name in averages)
    assert [record["step"] for record in records_of(whole)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("stop", [2, AR_STEPS, AR_STEPS + 1])
def test_stopping_changes_nothing(train: Train, whole: Path, tmp_path: Path, stop: int) -> None:
    train(tmp_path, f"run.max_steps={stop}")
    assert len(records_of(tmp_path)) == stop
    assert newest_checkpoint(tmp_path).name == f"step_{stop:08d}"
    assert_same_run(train(tmp_path), whole)


def test_weights_that_a_checkpoint_fills_are_not_drawn(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "resumed", "run.max_steps=3")
    monkeypatch.setattr(loop, "initialize", None)
    assert_same_run(train(tmp_path / "resumed"), whole)
    train(tmp_path / "started", f"init.checkpoint={whole}", "run.max_steps=1")
    with pytest.raises(TypeError):
        train(tmp_path / "new", "run.max_steps=1")


@pytest.mark.long
def test_stopping_after_every_step_changes_nothing(train: Train, whole: Path, tmp_path: Path) -> None:
    for step in range(1, STEPS + 1):
        train(tmp_path, f"run.max_steps={step}")
    assert_same_run(tmp_path, whole)


def test_a_limit_that_is_reached_trains_nothing(train: Train, tmp_path: Path) -> None:
    train(tmp_path, "run.max_steps=3")
    before = saved_tensors(newest_checkpoint(tmp_path))
    for limit in (3, 2):
        train(tmp_path, f"run.max_steps={limit}")
        assert [record["step"] for record in records_of(tmp_path)] == [1, 2, 3]
        after = saved_tensors(newest_checkpoint(tmp_path))
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_finished_run_stays_as_it_is(train: Train, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_steps_beyond_the_checkpoint_are_made_again(train: Train, whole: Path, tmp_path: Path) -> None:
    """As after a kill between two checkpoints: steps after the last checkpoint, and half a line."""
    train(tmp_path, "run.max_steps=3")
    lost = [record | {"step": step, "loss": 99.0} for step, record in zip((4, 5), records_of(tmp_path), strict=False)]
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write("".join(json.dumps(record) + "\n" for record in lost) + '{"stage": "joi')
    assert_same_run(train(tmp_path), whole)


def test_an_unfinished_checkpoint_is_not_taken(train: Train, whole: Path, tmp_path: Path) -> None:
    """As after a kill while saving."""
    train(tmp_path, "run.max_steps=5")
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step_00000007.tmp").mkdir()
    (checkpoints / "step_00000007.tmp" / "__0_0.distcp").write_bytes(b"half")
    assert_same_run(train(tmp_path), whole)


@pytest.mark.long
def test_saving_often_or_behind_the_steps_changes_nothing(train: Train, whole: Path, tmp_path: Path) -> None:
    assert_same_run(train(tmp_path / "often", "checkpoint.every=1"), whole)
    assert_same_run(train(tmp_path / "waiting", "checkpoint.every=1", "checkpoint.asynchronous=false"), whole)


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.long), AR_STEPS + 1])
def test_other_micro_batches_go_on(train: Train, whole: Path, tmp_path: Path, stop: int) -> None:
    train(tmp_path, f"run.max_steps={stop}")
    train(tmp_path, "batch.micro_size=2", "data.workers=1")
    for found, expected in zip(records_of(tmp_path), records_of(whole), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_other_numbers_of_data_workers_change_no_bit(train: Train, whole: Path, tmp_path: Path) -> None:
    """A change in the middle of each stage."""
    for stop, workers in ((2, 0), (AR_STEPS + 1, 2), (STEPS, 1)):
        train(tmp_path, f"run.max_steps={stop}", f"data.workers={workers}")
    assert_same_run(tmp_path, whole)
