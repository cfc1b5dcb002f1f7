"""What is saved is what the step left, however long the writing takes and whatever becomes of it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedBase
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint, saved_tensors
from training_runs import Train

from nld_train.training import run, saving
from nld_train.training.checkpoint import Progress

Command = Callable[..., tuple[int, str]]


def test_what_the_next_step_changes_is_not_saved(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight and every optimizer tensor is overwritten before the first byte is written.

    Megatron copies some of them too, on a CPU, and on a GPU it copies in the background: nothing that is handed to it
    may share memory with what the step changes.
    """
    overwritten = threading.Event()
    write, save = saving._write, saving.dist_checkpointing.save
    handed_over: set[int] = set()

    def write_late(*arguments: Any) -> Any:
        assert overwritten.wait(60)
        return write(*arguments)

    def note_and_save(state: Any, *arguments: Any, **options: Any) -> Any:
        handed_over.update(storages(sharded_tensors(state)))
        return save(state, *arguments, **options)

    class Overwritten(saving.CheckpointWriter):
        def begin(self, model: list[Any], optimizer: Any, progress: Progress) -> None:
            super().begin(model, optimizer, progress)
            live = live_tensors(model, optimizer)
            assert len(live) > 30
            assert len(handed_over) > 30
            assert not handed_over & storages(live)
            for tensor in live:
                tensor.fill_(7)
            overwritten.set()

    train(tmp_path / "left_alone", "run.max_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr(saving, "_write", write_late)
        patch.setattr(saving.dist_checkpointing, "save", note_and_save)
        patch.setattr(run, "CheckpointWriter", Overwritten)
        train(tmp_path / "overwritten", "run.max_steps=3")
    found, expected = (saved_tensors(newest_checkpoint(tmp_path / name)) for name in ("overwritten", "left_alone"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert_same_run(train(tmp_path / "overwritten"), whole)


def live_tensors(model: list[Any], optimizer: Any) -> list[torch.Tensor]:
    """All that a step changes; the optimizer's count of steps is falsified at once."""
    tensors = [parameter.data for chunk in model for parameter in chunk.parameters()]
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        adam = part.optimizer
        for group in adam.param_groups:
            tensors += [parameter.data for parameter in group["params"]]
            group["step"] = 12345
        tensors += [value for state in adam.state.values() for value in state.values() if torch.is_tensor(value)]
    return tensors


def sharded_tensors(state: Any) -> list[torch.Tensor]:
    """The tensors under the leaves of a sharded state."""
    if isinstance(state, dict | list):
        values = state.values() if isinstance(state, dict) else state
        return [tensor for value in values for tensor in sharded_tensors(value)]
    data = getattr(state, "data", None)
    return [data] if isinstance(state, ShardedBase) and torch.is_tensor(data) else []


def storages(tensors: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_a_folder_that_cannot_be_made(command: Command, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    assert_one_line(*command(f"run.dir={tmp_path}", "checkpoint.every=1"), "by rank 0")


def test_a_file_that_cannot_be_written(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line comes from the thread that writes; the checkpoint before stays."""
    write = saving._write

    def write_nowhere(request: Any, directory: Path, rank: int) -> Any:
        if directory.name == "step_00000002.tmp":
            shutil.rmtree(directory)
        return write(request, directory, rank)

    monkeypatch.setattr(saving, "_write", write_nowhere)
    assert_one_line(*command(f"run.dir={tmp_path}", "checkpoint.every=1"), "step_00000002.tmp", "No such file")
    assert newest_checkpoint(tmp_path).name == "step_00000001"


def assert_one_line(status: int, errors: str, *pieces: str) -> None:
    assert status == 2
    lines = [line for line in errors.splitlines() if "error" in line]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: checkpoint ")
    for piece in ("could not be written", *pieces):
        assert piece in lines[0]
