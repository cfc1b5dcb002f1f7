"""A run in this process, through the settings of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shared import shared_folder
from tiny_runs import TINY_MODEL, data_overrides, train_here, two_stages, undrawn, write_token_set
from training_runs import AR_STEPS, JOINT_STEPS, Train

# Stops, saves and refusals are the same whatever the depth; two micro-batches for a step are as good as four.
SMALL = ("model.num_hidden_layers=2", "batch.micro_size=4")


@pytest.fixture(scope="session")
def token_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = shared_folder(tmp_path_factory, "tokens", lambda folder: write_token_set(folder / "train", seed=1))
    return str(folder / "train")


@pytest.fixture(scope="session")
def data(token_set: str) -> tuple[str, ...]:
    """Overrides of the model and its data, without stages."""
    return (*TINY_MODEL, *SMALL, *data_overrides(token_set))


@pytest.fixture(scope="session")
def settings(data: tuple[str, ...]) -> tuple[str, ...]:
    """Overrides of a run of 4 AR and 4 joint steps."""
    return (*data, *two_stages(AR_STEPS, JOINT_STEPS))


@pytest.fixture(scope="session")
def train(settings: tuple[str, ...]) -> Train:
    """Trains into a directory, with more overrides; returns the directory."""
    return lambda directory, *overrides, **more: train_here(directory, *settings, *overrides, **more)


@pytest.fixture(scope="session")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    return shared_folder(tmp_path_factory, "whole-run", lambda folder: train(folder, drawn=True))


@pytest.fixture
def command(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """`nld-train` with the settings and more overrides, in this process; returns its status and error stream."""

    def run(*overrides: str) -> tuple[int, str]:
        from nld_train.commands.train import main

        monkeypatch.setattr("sys.argv", ["nld-train", *settings, *overrides])
        capfd.readouterr()
        return main(), capfd.readouterr().err

    return run


@pytest.fixture
def quick_reports() -> Iterator[None]:
    """Reports are not drawn."""
    with undrawn():
        yield
