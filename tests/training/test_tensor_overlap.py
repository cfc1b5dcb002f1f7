"""Overlapped tensor-parallel communication: buffers of each stage's shape, and decoding that does without them.

Transformer Engine is stood in for by what its sources do: buffers of one shape that are made once at a time, and linear
layers that read flags in every forward pass and refuse other shapes while a flag is set.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from tiny_runs import SHORT, TINY_MODEL, composed, freeze_libraries, records_of, short_stages, undrawn

from nld_train.config.stage_kinds import running_kinds
from nld_train.model import accelerator, build
from nld_train.model.accelerator import destroy_overlap_buffers, make_overlap_buffers

RUN = (*TINY_MODEL, *SHORT, *short_stages(2, 2), "batch.micro_size=2")
FLAGS = ("ub_overlap_ag_fprop", "ub_overlap_rs_fprop", "ub_bulk_dgrad")


class Buffers:
    """What Transformer Engine keeps in its module `base`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shape: list[int] | None = None
        self.made: list[Any] = []
        base = ModuleType("transformer_engine.pytorch.module.base")
        monkeypatch.setattr(base, "initialize_ub", self._initialize, raising=False)
        monkeypatch.setattr(base, "destroy_ub", self._destroy, raising=False)
        monkeypatch.setitem(sys.modules, base.__name__, base)

    def _initialize(self, shape: list[int], **_: Any) -> None:
        assert self.shape is None, "UB communicators are already initialized."
        self.shape = shape
        self.made.append(shape)

    def _destroy(self) -> None:
        self.shape = None
        self.made.append("destroyed")

    def check(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """A forward hook of a linear layer."""
        if any(getattr(module, flag) for flag in FLAGS):
            assert self.shape is not None, "UB manager is not initialized."
            assert inputs[0].shape[0] * inputs[0].shape[1] == self.shape[0], "the input does not fit the buffer"


def overlapping(monkeypatch: pytest.MonkeyPatch, buffers: Buffers) -> list[Any]:
    """Lets the layers of the next model behave as if they overlapped; returns them."""
    layers: list[Any] = []
    plain = build._build_chunk

    def build_chunk(*arguments: Any) -> Any:
        chunk = plain(*arguments)
        for module in chunk.decoder.modules():
            if isinstance(module, ColumnParallelLinear | RowParallelLinear):
                for flag in FLAGS:
                    setattr(module, flag, True)
                module.ub_overlap_rs_dgrad, module.ub_name = False, "qkv"
                module.register_forward_pre_hook(buffers.check)
                layers.append(module)
        return chunk

    monkeypatch.setattr(build, "_build_chunk", build_chunk)
    monkeypatch.setattr(build, "accelerator_settings", lambda *_: {})
    return layers


def test_a_run_of_two_stages_decodes_and_validates(
    data: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage has buffers for its streams; validation, of the same shape, uses them, and decoding does not."""
    from nld_train.training.loop import run

    freeze_libraries()
    buffers = Buffers(monkeypatch)
    layers = overlapping(monkeypatch, buffers)
    measured = ("validation.every=2", "validation.samples=4", "evaluation.every=1", "evaluation.prompts=3")
    lengths = ("evaluation.prompt_tokens=7", "evaluation.max_new_tokens=6", "evaluation.block_length=4")
    words = (*data, *RUN, *measured, *lengths, f"run.dir={tmp_path}", "parallel.overlap_tensor=true")
    with undrawn():
        assert run.train(composed(*words)) == 0
    joint, ar = [2 * 48, 32], [2 * 24, 32]
    assert buffers.made == [joint, "destroyed", ar, "destroyed", joint, "destroyed"]
    assert len(layers) == 2 * 4
    for layer in layers:
        assert all(getattr(layer, flag) for flag in FLAGS), "the flags are those of training again"
        assert layer.ub_overlap_rs_dgrad is False
        assert layer.ub_name == "qkv"
    assert ["decoding" in record for record in records_of(tmp_path)] == [False, False, True, True]
    assert ["validation" in record for record in records_of(tmp_path)] == [False, True, False, True]


def test_buffers_last_while_lengths_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs of a sweep share a process; Transformer Engine refuses to make its buffers twice."""
    buffers = Buffers(monkeypatch)
    destroy_overlap_buffers()  # without buffers it does nothing
    for length in (32, 48):
        config = composed("batch.micro_size=2", f"batch.sequence_length={length}", "model.hidden_size=40")
        for kind in (*running_kinds(config).values(), running_kinds(config)["joint"]):
            make_overlap_buffers(config, kind)
        destroy_overlap_buffers()
    shapes = [[[2 * length, 40], "destroyed", [4 * length, 40], "destroyed"] for length in (32, 48)]
    assert buffers.made == [*shapes[0], *shapes[1]]
    assert accelerator._buffer_shape is None
