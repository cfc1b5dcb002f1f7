"""A joint step never holds logits of more rows than a chunk: every tensor that it makes is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.shapes import random_run
from benchmarks.stepper import Stepper
from nld_train.config.schema import Config
from nld_train.training.loop.parallel import parallel_groups

CHUNK, LENGTH, ROWS = 24, 64, 2
# Like no other size of the model.
VOCABULARY, WIDTH = 1531, 128


class LargestLogits(TorchDispatchMode):
    """Remembers the most rows that any tensor with a vocabulary's columns had, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # The head's matrix, transposed for the product, is no logits.
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCABULARY,) and tensor.shape[0] != WIDTH:
                self.rows = max(self.rows, tensor.numel() // VOCABULARY)
        return result


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    words = [
        f"model.vocab_size={VOCABULARY}",
        "model.num_hidden_layers=1",
        f"batch.global_size={ROWS}",
        f"batch.micro_size={ROWS}",
        f"batch.sequence_length={LENGTH}",
        "execution.device=cpu",
    ]
    with random_run(None, words) as config:
        yield config


@pytest.mark.parametrize("chunk_rows", [CHUNK, 10_000])
def test_a_joint_step_holds_logits_of_one_chunk(config: Config, chunk_rows: int) -> None:
    """With larger chunks all supervised rows at once; unsupervised ones never, so it is not 2L either way."""
    chosen = replace(config, execution=replace(config.execution, head_chunk_rows=chunk_rows))
    with parallel_groups(chosen) as device:
        stepper = Stepper(chosen, device)
        samples = stepper.prepare("joint")[0]
        supervised = int(samples["supervised"].sum()) + int(samples["masked"].sum())
        with LargestLogits() as seen:
            stepper.step("joint")
    assert CHUNK < supervised < ROWS * 2 * LENGTH
    assert seen.rows == min(chunk_rows, supervised)
