"""Weights with NaN or infinity: found at once, never saved, never recommended, one line from every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_ranks
from shared import shared_folder
from tiny_runs import SHORT, newest_checkpoint, records_of, saved_tensors, short_stages, train_here, undrawn

from nld_train.training.checkpoint import save as saving
from nld_train.training.checkpoint.paths import written_checkpoints
from nld_train.training.loop.adam import GroupStepAdamW

Command = Callable[..., tuple[int, str]]
SETTINGS = (
    *SHORT,
    *short_stages(6, 2),
    "model.initializer_range=1",
    "checkpoint.every=1",
    "checkpoint.keep_last=1",
)


def rates(rate: str) -> list[str]:
    return [f"stages.ar.schedule.{name}={rate}" for name in ("learning_rate", "final_learning_rate")] + [
        f"stages.ar.schedule.{name}=0" for name in ("warmup_fraction", "decay_fraction")
    ]


def line_of(found: tuple[int, str]) -> str:
    status, errors = found
    assert status == 2, errors
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    return lines[0]


def steps(directory: Path) -> list[str]:
    return [path.name for path in written_checkpoints(directory / "checkpoints")]


@pytest.fixture
def run(command: Command) -> Iterator[Command]:
    """`nld-train` over the settings of this file."""
    with undrawn():
        yield lambda directory, *overrides: command(*SETTINGS, f"run.dir={directory}", *overrides)


@pytest.fixture
def two_steps(data: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A run that was stopped after two good steps."""
    stopped = shared_folder(
        tmp_path_factory,
        "two-good-steps",
        lambda folder: train_here(folder, *data, *SETTINGS, *rates("2e-3"), "run.max_steps=2"),
    )
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.fixture(scope="module")
def poisoned(data: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only checkpoint has one NaN, in a row of the embedding that no text uses, as an old version wrote."""

    def spoiled(model: list[Any], *_: Any) -> None:
        from nld_train.training.loop.optimizer import unwrap

        unwrap(model[0]).embedding.word_embeddings.weight.data[3, 0] = torch.nan

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "refuse_non_finite_state", spoiled)
            train_here(folder, *data, *SETTINGS, *rates("2e-3"), "run.max_steps=1")

    return shared_folder(tmp_path_factory, "poisoned-run", make)


def test_a_rate_that_is_too_large_for_the_first_step_is_one_line(run: Command, tmp_path: Path) -> None:
    message = line_of(run(tmp_path / "run", *rates("1e38")))
    assert "learning rate 1e+38 is too large" in message
    assert "there is no checkpoint yet; start again with a lower learning rate" in message
    assert steps(tmp_path / "run") == []


def test_an_update_that_makes_infinity_is_not_saved(run: Command, two_steps: Path) -> None:
    """Loss and gradient are finite. The good checkpoint is still there, and is recommended."""
    good = newest_checkpoint(two_steps)
    # Weight decay multiplies weights by -3.3e38, and some are above 1.03.
    message = line_of(run(two_steps, *rates("3e37"), "optimizer.weight_decay=11"))
    assert "after the update of step 3 " in message
    assert "contains NaN or infinity: these weights were not saved" in message
    assert f"the last checkpoint, {good}, is unchanged; resume from it with a lower learning rate" in message
    assert steps(two_steps) == [good.name]
    assert list((two_steps / "checkpoints").glob("*.tmp")) == []


def test_moments_that_overflow_are_not_saved(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are finite, and would never change again."""
    step = GroupStepAdamW.step

    def overflow(optimizer: GroupStepAdamW) -> None:
        step(optimizer)
        next(iter(optimizer.state.values()))["exp_avg_sq"][0] = torch.inf

    monkeypatch.setattr(GroupStepAdamW, "step", overflow)
    message = line_of(run(tmp_path / "run", *rates("1e-3")))
    assert "after the update of step 1 the optimizer's exp_avg_sq contains NaN or infinity" in message
    assert steps(tmp_path / "run") == []


def test_finite_weights_that_are_of_no_use_do_not_replace_the_good_ones(run: Command, two_steps: Path) -> None:
    """The update makes weights of 5e37, which are finite; that their loss is not shows in the next step."""
    message = line_of(run(two_steps, *rates("5e37")))
    assert "is nan" in message
    bad, good = written_checkpoints(two_steps / "checkpoints")
    assert (bad.name, good.name) == ("step_00000003", "step_00000002")
    assert f"{bad} leads to the same; delete it and resume from {good.name} with a lower learning rate" in message
    shutil.rmtree(bad)
    assert run(two_steps, *rates("1e-3"), "run.max_steps=4")[0] == 0
    assert steps(two_steps) == ["step_00000004"]
    assert [record["step"] for record in records_of(two_steps)] == [1, 2, 3, 4]


def test_weights_with_nan_are_refused_when_they_are_loaded(
    run: Command, poisoned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The row is not used in this stage: its losses would be finite."""
    checkpoint = newest_checkpoint(poisoned)
    assert saved_tensors(checkpoint)["embedding.word_embeddings.weight"].isnan().sum() == 1
    named = "embedding.word_embeddings.weight contains NaN or infinity"
    again = shutil.copytree(poisoned, tmp_path / "again")
    assert f"{newest_checkpoint(again)}: {named}" in line_of(run(again))
    assert f"{checkpoint}: {named}" in line_of(run(tmp_path / "new", f"init.checkpoint={poisoned}"))
    assert steps(tmp_path / "new") == []

    from checkpoint_convert.cli import main

    capfd.readouterr()
    assert main(["export", str(poisoned), str(tmp_path / "out"), "--format", "nld"]) == 2
    assert "embed_tokens.weight contains NaN or infinity" in capfd.readouterr().err
    assert not list(tmp_path.glob("out*"))
    assert main(["verify", str(poisoned), str(again)]) == 1
    printed = capfd.readouterr().out
    assert "0 differ, 1 contain NaN or infinity; no logits compared; the checkpoints do not agree" in " ".join(
        printed.split()
    )


@pytest.mark.long
def test_weights_with_nan_on_one_process_end_all(data: tuple[str, ...], poisoned: Path, tmp_path: Path) -> None:
    """The embedding is on the first of two pipeline ranks alone."""
    words = [*data, *SETTINGS, "parallel.pipeline=2", f"init.checkpoint={poisoned}", f"run.dir={tmp_path}/run"]
    done = run_ranks(2, ["-m", "nld_train.train", *words], timeout=120)
    assert done.status != 0
    assert "Traceback" not in done.output
    assert "word_embeddings.weight contains NaN or infinity" in done.output
