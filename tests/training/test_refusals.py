"""What cannot start or continue is refused: one line, a status, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import write_token_set
from training_runs import Train

Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped inside its second stage."""
    return train(tmp_path_factory.mktemp("stopped"), "run.max_steps=5")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_one_line(found: tuple[int, str], *pieces: str) -> None:
    status, errors = found
    assert status == 2
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    for piece in pieces:
        assert piece in lines[0]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.hidden_size=64", "model.hidden_size"),
        ("model.num_hidden_layers=4", "model.num_hidden_layers"),
        ("model.vocab_size=80", "model.vocab_size"),
        ("model.rms_norm_eps=1e-6", "model.rms_norm_eps"),
        ("model.mask_token_id=0 model.pad_token_id=3", "model.mask_token_id"),
        ("batch.global_size=16", "batch.global_size"),
        ("batch.sequence_length=16", "batch.sequence_length"),
        ("run.seed=5", "run.seed"),
        ("data.documents=ignore", "data.documents"),
        ("diffusion.block_size=7", "diffusion"),
        ("run.stages=[joint,ar]", "run.stages"),
        ("stages.ar.tokens=1000", "stages.ar.tokens"),
        ("stages.joint.tokens=10000", "stages.joint.tokens"),
    ],
)
def test_another_run_does_not_continue(command: Command, stopped: Path, override: str, named: str) -> None:
    before = contents(stopped)
    assert_one_line(command(f"run.dir={stopped}", *override.split()), f"error: {named}", "does not continue")
    assert contents(stopped) == before


def test_other_data_do_not_continue(command: Command, stopped: Path, tmp_path: Path) -> None:
    before = contents(stopped)
    other = write_token_set(tmp_path / "other", seed=2)
    found = command(f"run.dir={stopped}", f"data.train=[{{prefix: {other}, weight: 1}}]")
    assert_one_line(found, "data of stage ar", "data.train")
    assert contents(stopped) == before


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_directory_that_cannot_be_written(command: Command, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_one_line(command(f"run.dir={tmp_path}/file{below}"), "error: run.dir", f"{tmp_path}/file{below}")
    assert contents(tmp_path) == {"file": b"in the way"}


@pytest.mark.parametrize("given", ["", "/checkpoints", "/checkpoints/step_00000005"])
def test_starting_weights_of_another_model(command: Command, stopped: Path, tmp_path: Path, given: str) -> None:
    run_directory = tmp_path / "run"
    found = command(f"run.dir={run_directory}", f"init.checkpoint={stopped}{given}", "model.hidden_size=64")
    assert_one_line(found, "model.hidden_size", "64", "32")
    assert not run_directory.exists() or contents(run_directory) == {}


def test_starting_weights_that_are_not_there(command: Command, tmp_path: Path) -> None:
    run_directory = tmp_path / "run"
    found = command(f"run.dir={run_directory}", f"init.checkpoint={tmp_path}/nothing")
    assert_one_line(found, "init.checkpoint", f"{tmp_path}/nothing")
    assert not run_directory.exists() or contents(run_directory) == {}


def test_validation_samples_that_cannot_be_shared_out(command: Command, tmp_path: Path) -> None:
    found = command(f"run.dir={tmp_path}/run", "validation.every=1", "validation.samples=15")
    assert_one_line(found, "error: validation.samples")
    assert contents(tmp_path) == {}


def test_validation_samples_that_are_not_there(command: Command, tmp_path: Path) -> None:
    """The set holds some 1,800 tokens: beyond, the first samples would come again and count twice."""
    found = command(f"run.dir={tmp_path}/run", "validation.every=1", "validation.samples=160")
    assert_one_line(found, "error: validation.samples=160: must be at most ", "data.validation")
    most = int(found[1].partition("at most ")[2].partition(",")[0])
    assert 50 < most < 100
    assert contents(tmp_path) == {}


def test_data_that_are_not_there_leave_no_directory(command: Command, tmp_path: Path) -> None:
    found = command(f"run.dir={tmp_path}/run", f"data.train=[{{prefix: {tmp_path}/none, weight: 1}}]")
    assert_one_line(found, f"{tmp_path}/none")
    assert list(tmp_path.iterdir()) == []


def test_attention_without_a_backward_pass(command: Command, tmp_path: Path) -> None:
    """FlexAttention trains on CUDA only."""
    found = command(f"run.dir={tmp_path}/run", "execution.attention=flex")
    assert_one_line(found, "error: execution.attention", "chunked")
    assert contents(tmp_path) == {}
