"""Held-out losses: fixed noise, no influence on training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import newest_checkpoint, records_of, saved_tensors
from training_runs import AR_STEPS, Train


@pytest.fixture(scope="module")
def validated(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("validated"), "validation.every=2")


def curve(directory: Path) -> dict[int, dict[str, Any]]:
    """The losses of each step that validated."""
    timed = ("seconds", "share")
    return {
        record["step"]: {name: value for name, value in record["validation"].items() if name not in timed}
        for record in records_of(directory)
        if "validation" in record
    }


def test_validation_changes_no_weight(validated: Path, whole: Path) -> None:
    tensors, others = saved_tensors(newest_checkpoint(validated)), saved_tensors(newest_checkpoint(whole))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def test_validation_comes_at_its_interval(validated: Path, whole: Path) -> None:
    assert [record["step"] for record in records_of(validated) if "validation" in record] == [2, 4, 6, 8]
    assert not any("validation" in record for record in records_of(whole))


def test_the_diffusion_loss_is_recorded_by_noise_level(validated: Path) -> None:
    found = curve(validated)
    assert found[AR_STEPS]["diffusion_loss"] == {}
    assert list(found[AR_STEPS + 2]["diffusion_loss"]) == ["0.25", "0.5", "0.75", "1"]


def test_the_same_weights_have_the_same_losses(train: Train, validated: Path, tmp_path: Path) -> None:
    """Also in a run that was stopped in between, validates more often and reads other micro-batches."""
    train(tmp_path, "run.max_steps=5", "validation.every=2")
    train(tmp_path, "validation.every=1")
    again = curve(tmp_path)
    for step, losses in curve(validated).items():
        assert again[step] == losses


def test_a_stage_that_trains_nothing_validates_alike(train: Train, tmp_path: Path) -> None:
    """With a negligible learning rate the curve is flat: its noise is the same at every step."""
    still = [f"stages.{stage}.schedule.{rate}=1e-30" for stage in ("ar", "joint") for rate in RATES]
    train(tmp_path, "validation.every=1", *still)
    points = list(curve(tmp_path).values())[AR_STEPS:]
    assert all(point == points[0] for point in points)


def test_its_time_is_recorded(validated: Path) -> None:
    found = [record["validation"] for record in records_of(validated) if "validation" in record]
    assert all(one["seconds"] > 0 for one in found)
    assert all(0 < one["share"] < 1 for one in found)
    # The share is of all validations so far.
    elapsed = sum(one["seconds"] for one in found) / found[-1]["share"]
    assert elapsed > sum(record["seconds"] for record in records_of(validated))


RATES = ("learning_rate", "final_learning_rate")
