"""Whole runs under torchrun: stopping, going on under other layouts, and worlds that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import (
    TINY_MODEL,
    data_overrides,
    newest_checkpoint,
    records_of,
    saved_tensors,
    torchrun,
    train_here,
    two_stages,
)

from nld_train.config.compose import compose_config
from nld_train.config.load import config_to_yaml

STEPS = 8
WORKER = Path(__file__).with_name("runs_worker.py")
LOSSES = ("loss", "ar_loss", "diffusion_loss", "grad_norm")


@pytest.fixture(scope="module")
def settings(token_set: str) -> tuple[str, ...]:
    return (*TINY_MODEL, *data_overrides(token_set), *two_stages(4, 4), "validation.every=2")


def losses_of(directory: Path) -> list[list[float | None]]:
    return [[record[name] for name in LOSSES] for record in records_of(directory)]


def test_two_data_parallel_processes_stop_and_go_on(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Equal to the last bit, inside a stage and across its border."""
    started = [("whole", "null"), ("stopped", "3"), ("stopped", "4"), ("stopped", "6"), ("stopped", "null")]
    paths = []
    for number, (name, limit) in enumerate(started):
        overrides = [*settings, f"run.dir={tmp_path / name}", f"run.max_steps={limit}"]
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(config_to_yaml(compose_config(overrides)))
    done = torchrun(2, [str(WORKER), *map(str, paths)], timeout=300)
    assert done.status == 0, done.output
    whole, stopped = (saved_tensors(newest_checkpoint(tmp_path / name)) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")
    assert [record["step"] for record in records_of(tmp_path / "stopped")] == list(range(1, STEPS + 1))


def test_a_run_goes_on_under_other_layouts(settings: tuple[str, ...], tmp_path: Path) -> None:
    """One process, TP2 x PP2, DP2, one process: with weights and optimizer state, as one process alone."""
    whole = train_here(tmp_path / "whole", *settings)
    moved = train_here(tmp_path / "moved", *settings, "run.max_steps=2")
    command = ["-m", "nld_train.train", *settings, f"run.dir={moved}"]
    for processes, overrides in (
        (4, ["parallel.tensor=2", "parallel.pipeline=2", "run.max_steps=5"]),
        (2, ["run.max_steps=7"]),
    ):
        done = torchrun(processes, [*command, *overrides], timeout=300)
        assert done.status == 0, done.output
    train_here(moved, *settings)
    found, expected = records_of(moved), records_of(whole)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    for one, other in zip(found, expected, strict=True):
        numbers = {name: other[name] for name in LOSSES if other[name] is not None}
        assert {name: one[name] for name in numbers} == pytest.approx(numbers, rel=1e-5)
        if "validation" in other:
            assert one["validation"]["ar_loss"] == pytest.approx(other["validation"]["ar_loss"], rel=1e-5)
            assert one["validation"]["diffusion_loss"] == pytest.approx(other["validation"]["diffusion_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("processes", "override", "said"),
    [
        (3, "parallel.tensor=2", "error: world size=3: must be a multiple of 2"),
        (3, "parallel.tensor=1", "error: batch.global_size=8: must be a multiple of 6"),
    ],
)
def test_a_world_that_does_not_fit(
    settings: tuple[str, ...], tmp_path: Path, processes: int, override: str, said: str
) -> None:
    done = torchrun(
        processes, ["-m", "nld_train.train", *settings, override, f"run.dir={tmp_path / 'run'}"], timeout=60
    )
    assert done.status != 0
    errors = [line for line in done.output.splitlines() if "error" in line and not line.startswith(("E", "W"))]
    assert len(errors) == 1, done.output
    assert errors[0].startswith(said)
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()
