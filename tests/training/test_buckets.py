"""Gradients in several buckets: the same steps, and checkpoints that are read by runs with others."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_equality import assert_same_run
from training_runs import Train

from nld_train.config import counts
from nld_train.training.loop import data_parallel


@pytest.mark.parametrize("overlap", ["false", "true"])
def test_many_buckets_change_nothing(
    train: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    numbers: list[int] = []
    allocate = data_parallel.BucketedDataParallel.__init__

    def counting(self: data_parallel.BucketedDataParallel, *arguments: object) -> None:
        allocate(self, *arguments)
        numbers.append(len(self.buffers[0].buckets))

    train(tmp_path, "run.max_steps=2")
    monkeypatch.setattr(data_parallel.BucketedDataParallel, "__init__", counting)
    monkeypatch.setattr(counts, "BUCKET", 3000)
    monkeypatch.setattr(counts, "BUCKET_PER_RANK", 0)
    train(tmp_path, "run.max_steps=6", f"parallel.overlap_grad_reduce={overlap}")
    monkeypatch.setattr(counts, "BUCKET", 40_000_000)  # more than all weights
    assert_same_run(train(tmp_path), whole)
    assert min(numbers[:-1]) > 3
    assert numbers[-1] == 1
