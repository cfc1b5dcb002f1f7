"""A checkpoint has the state after its step, however long the writing takes and whether or not it succeeds."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint, saved_tensors
from training_runs import Train

from nld_train.training.checkpoint import save as saving
from nld_train.training.checkpoint.contents import Progress
from nld_train.training.checkpoint.megatron_save import Plan, _snapshot, plan_save, write_files
from nld_train.training.loop import run
from nld_train.training.loop.optimizer import optimizer_parts


def test_what_the_next_step_changes_is_not_saved(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight and every optimizer tensor is overwritten before the first byte is written.

    Megatron copies some of them too, on a CPU, and on a GPU it copies in the background: nothing that is handed to it
    may share memory with what the step changes.
    """
    overwritten = threading.Event()
    handed_over: set[int] = set()

    def write_late(plan: Plan) -> Any:
        assert overwritten.wait(60)
        return write_files(plan)

    def plan_and_note(*arguments: Any) -> Plan:
        plan = plan_save(*arguments)
        handed_over.update(storages(tensors_of(plan)))
        return plan

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
        patch.setattr(saving, "write_files", write_late)
        patch.setattr(saving, "plan_save", plan_and_note)
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
    for part in optimizer_parts(optimizer):
        adam = part.optimizer
        for group in adam.param_groups:
            tensors += [parameter.data for parameter in group["params"]]
            group["step"] = 12345
        tensors += [value for state in adam.state.values() for value in state.values() if torch.is_tensor(value)]
    return tensors


def tensors_of(plan: Plan) -> list[torch.Tensor]:
    """What a rank will write."""
    return [tensor for _, _, (_, items) in plan.writer.write_buckets for _, tensor in items]


def storages(tensors: list[torch.Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_only_what_this_rank_writes_is_copied() -> None:
    """A replicated tensor is copied by one rank; Megatron copies none that its rank does not write."""
    mine, other = torch.ones(3), torch.ones(3)
    state = {"a": [ShardedTensor.from_rank_offsets("a", mine, replica_id=0)]}
    state |= {"b": ShardedTensor.from_rank_offsets("b", other, replica_id=1)}
    copied = _snapshot(state)
    assert copied["b"].data is other
    assert copied["a"][0].data is not mine
    assert torch.equal(copied["a"][0].data, mine)


def test_the_thread_leaves_the_gpu_alone(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its current device would be the first one, which may be another rank's."""

    def refuse(*_: Any) -> None:
        raise AssertionError("Megatron's preloading synchronises the thread's current device")

    monkeypatch.setattr(FileSystemWriterAsync, "preload_tensors", staticmethod(refuse))
    synchronise = torch.cuda.synchronize
    threads: list[threading.Thread] = []

    def note_thread(*arguments: Any) -> None:
        threads.append(threading.current_thread())
        synchronise(*arguments)

    monkeypatch.setattr(torch.cuda, "synchronize", note_thread)
    train(tmp_path, "run.max_steps=1")
    assert newest_checkpoint(tmp_path).name == "step_00000001"
    assert set(threads) <= {threading.main_thread()}


def test_no_server_is_started(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron's would be killed by a signal to the whole job, sent so that it saves."""
    monkeypatch.setattr(filesystem_async, "_results_queue", None)
    before = multiprocessing.active_children()
    train(tmp_path, "run.max_steps=1")
    assert isinstance(filesystem_async._results_queue, queue.Queue)
    assert multiprocessing.active_children() == before


def test_all_is_on_the_disk_before_it_has_a_name(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before an older checkpoint is deleted: a loss of power only loses what was not needed any more."""
    events: list[tuple[str, Path]] = []
    fsync, replace, remove = os.fsync, os.replace, shutil.rmtree

    def note_fsync(descriptor: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def note_replace(source: Any, target: Any) -> None:
        events.append(("rename", Path(target)))
        replace(source, target)

    def note_rmtree(path: Any, *arguments: Any, **options: Any) -> None:
        events.append(("delete", Path(path)))
        remove(path, *arguments, **options)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(shutil, "rmtree", note_rmtree)
    train(tmp_path, "run.max_steps=2", "checkpoint.every=1", "checkpoint.keep_last=1")
    final = tmp_path / "checkpoints" / "step_00000002"
    temporary = final.with_name(f"{final.name}.tmp")
    named = events.index(("rename", final))
    before = {path for event, path in events[:named] if event == "fsync"}
    assert before >= {temporary, *(temporary / path.name for path in final.iterdir())}
    deleted = events.index(("delete", final.with_name("step_00000001.tmp")))
    between = events[named:deleted]
    folder = ("fsync", final.parent)
    assert between.index(folder) < between.index(("rename", final.with_name("latest")))
    assert folder in between[between.index(("rename", final.with_name("latest"))) :]
