"""Which checkpoints are kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_runs import SHORT, newest_checkpoint, short_stages
from training_runs import Train

from nld_train.config.schema import CheckpointConfig
from nld_train.training.checkpoint.contents import Progress
from nld_train.training.checkpoint.paths import written_checkpoints
from nld_train.training.checkpoint.retention import apply_retention


def write(directory: Path, step: int, stage_steps: int = 1000) -> Path:
    """A checkpoint in name: stages end at multiples of `stage_steps`."""
    path = directory / f"step_{step:08d}"
    path.mkdir(parents=True)
    stage_step = (step - 1) % stage_steps + 1
    (path / "progress.json").write_text(json.dumps(asdict(Progress(step, "ar", stage_step, stage_steps, {}))))
    return path


def kept(directory: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in reversed(written_checkpoints(directory))]


def rules(keep_last: int | None, keep_every: int | None) -> CheckpointConfig:
    return CheckpointConfig(every=1, asynchronous=True, keep_last=keep_last, keep_every=keep_every)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [
        (None, None, [1, 2, 3, 4, 5, 6, 7, 8]),
        (None, 4, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, None, [5, 6, 7, 8]),
        (1, None, [5, 8]),
        (1, 3, [3, 5, 6, 8]),
        (2, 2, [2, 4, 5, 6, 7, 8]),
        (20, 3, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_the_last_every_nth_and_the_end_of_a_stage(
    tmp_path: Path, keep_last: int | None, keep_every: int | None, expected: list[int]
) -> None:
    """The stage ends after five steps. Rules are applied after each checkpoint, as a run does it."""
    for step in range(1, 9):
        apply_retention(write(tmp_path, step, stage_steps=5), rules(keep_last, keep_every))
        assert step in kept(tmp_path)
    assert kept(tmp_path) == expected
    assert len(list(tmp_path.iterdir())) == len(expected)


def test_damaged_later_ones_displace_no_sound_one(tmp_path: Path) -> None:
    """The run fell back to step 2, and has just written step 3; 6 and 9 are damaged, 6 beyond recognition."""
    for step in (1, 2, 6, 9):
        write(tmp_path, step)
    (tmp_path / "step_00000006" / "progress.json").unlink()
    apply_retention(write(tmp_path, 3), rules(1, None))
    assert kept(tmp_path) == [3, 6, 9]


def test_a_damaged_earlier_one_goes_without_a_word(tmp_path: Path) -> None:
    (write(tmp_path, 1) / "progress.json").write_text("{")
    (write(tmp_path, 2) / "progress.json").unlink()
    apply_retention(write(tmp_path, 3), rules(1, None))
    assert kept(tmp_path) == [3]


def test_a_run_keeps_what_its_settings_say(train: Train, tmp_path: Path) -> None:
    overrides = ("checkpoint.every=1", "checkpoint.keep_last=2", "checkpoint.keep_every=3")
    train(tmp_path, *SHORT, *short_stages(4, 4), *overrides)
    assert kept(tmp_path / "checkpoints") == [3, 4, 6, 7, 8]
    assert newest_checkpoint(tmp_path).name == "step_00000008"
