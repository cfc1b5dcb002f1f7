"""The adapters of a model: the drafter adapter, and the LoRA that a stage trains in place of the model's weights.

Both are low-rank changes of linear layers. They differ in where they are on: the drafter adapter, on attention's output
projections, only where `LayerContext.adapted` of a forward pass is 1, which is the noisy stream of the draft pass in
training and the drafting forwards of linear self-speculation; a LoRA everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nld_train.collectives import all_gather
from nld_train.config.schema import ModelConfig
from nld_train.model.adapter_files import (
    DRAFTER_DIRECTORY,
    DRAFTER_TARGETS,
    LORA_DIRECTORY,
    AdapterShape,
    read_shape,
    read_tensors,
    tensor_names,
)
from nld_train.model.initialize import copy_part, generator_of, shards
from nld_train.model.low_rank import ATTENTION_LINEARS, MLP_LINEARS, LoraChanges, LowRankChange
from nld_train.model.ministral3 import Ministral3Model


@dataclass(frozen=True)
class Role:
    """What an adapter is for.

    Attributes:
        attribute: of a layer's attention or MLP, that holds its changes; part of their names in a checkpoint.
        directory: of its files in a checkpoint and in an export.
    """

    attribute: str
    directory: str


DRAFTER = Role("adapter", DRAFTER_DIRECTORY)
LORA = Role("lora", LORA_DIRECTORY)
ROLES = (DRAFTER, LORA)


def attach_adapter(chunks: list[Ministral3Model], role: Role, shape: AdapterShape) -> None:
    """Adds an adapter with zero weights to every layer of a model, which computes the same as before.

    Args:
        chunks: of the model on this rank, unwrapped.
        role: of the adapter.
        shape: rank, lora_alpha and targets.
    """
    assert role is LORA or shape.targets == DRAFTER_TARGETS
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            attention = layer.self_attention
            if role is DRAFTER:
                change = LowRankChange(chunk.config, shape, *DRAFTER_TARGETS)
                attention.adapter = change.to(attention.linear_proj.weight)
            else:
                attention.lora = LoraChanges(attention, ATTENTION_LINEARS, shape)
                layer.mlp.lora = LoraChanges(layer.mlp, MLP_LINEARS, shape)
    for _, _, change in _changes(chunks, role):
        for weight in change.parameters():
            torch.nn.init.zeros_(weight)


@torch.no_grad()
def initialize_adapter(chunks: list[Ministral3Model], role: Role, seed: int) -> None:
    """PEFT's initialisation, the same under every layout: A uniform within `1 / sqrt(inputs)`, B zero."""
    for chunk in chunks:
        for shard in shards(chunk.sharded_state_dict()):
            if f".{role.attribute}." not in shard.key or not shard.key.endswith(".down.weight"):
                continue
            axes = shard.prepend_axis_num
            layer, offset = shard.global_offset[:axes], shard.global_offset[axes:]
            whole = torch.empty(shard.global_shape[axes:], dtype=torch.float32)
            bound = 1 / math.sqrt(whole.shape[1])
            whole.uniform_(-bound, bound, generator=generator_of(seed, f"{shard.key}/{'.'.join(map(str, layer))}"))
            assert shard.data is not None
            copy_part(shard.data, whole, offset)


def adapter_shape(chunks: list[Ministral3Model], role: Role) -> AdapterShape | None:
    """Rank, lora_alpha and targets of a model's adapter, or None where it has none."""
    return next((change.shape for _, _, change in _changes(chunks, role)), None)


def adapter_tensors(chunks: list[Ministral3Model], role: Role) -> dict[str, Tensor]:
    """The whole adapter under PEFT's names, on the CPU of rank 0 and empty elsewhere; a collective call."""
    own: dict[str, Tensor] = {}
    for number, target, change in _changes(chunks, role):
        for name, weight, axis in _weights(number, target, change):
            own[name] = weight.detach().to("cpu", copy=True) if axis is None else _whole(weight, axis)
    first_replica = (
        parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        and parallel_state.get_tensor_model_parallel_rank() == 0
    )
    parts: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(own if first_replica else {}, parts if dist.get_rank() == 0 else None)
    return {name: tensor for part in parts if part for name, tensor in part.items()}


@torch.no_grad()
def load_adapter(chunks: list[Ministral3Model], role: Role, tensors: dict[str, Tensor]) -> None:
    """Fills a model's adapter; every rank copies its shard.

    Args:
        chunks: with an adapter of the same shape.
        role: of the adapter.
        tensors: the whole adapter, under PEFT's names.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    for number, target, change in _changes(chunks, role):
        for name, weight, axis in _weights(number, target, change):
            whole = tensors[name]
            width = weight.shape[axis or 0]
            weight.copy_(whole if axis is None else whole.narrow(axis, rank * width, width))


def merge_lora(chunks: list[Ministral3Model]) -> None:
    """Adds a model's LoRA to its weights and removes it; changes nothing where there is none."""
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            for parent in (layer.self_attention, layer.mlp):
                if (lora := getattr(parent, LORA.attribute, None)) is not None:
                    lora.merge(parent)
                    delattr(parent, LORA.attribute)


def merge_saved_lora(chunks: list[Ministral3Model], directory: Path, model: ModelConfig) -> None:
    """Adds the LoRA in a checkpoint's directory to the weights of a model, which are those of that checkpoint.

    The same values as of `merge_lora` in the run that wrote it.

    Args:
        chunks: of the model on this rank, without a LoRA.
        directory: with the files of a LoRA.
        model: shapes of the checkpoint's model.
    """
    attach_adapter(chunks, LORA, read_shape(directory, model, drafter=False))
    load_adapter(chunks, LORA, read_tensors(directory))
    merge_lora(chunks)


def _changes(chunks: list[Ministral3Model], role: Role) -> Iterator[tuple[int, str, LowRankChange]]:
    """Each change with the number of its layer in the whole model, from 0, and its target."""
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            for parent in (layer.self_attention, layer.mlp):
                for target, change in _named(getattr(parent, role.attribute, None)):
                    yield layer.layer_number - 1, target, change


def _named(found: LoraChanges | LowRankChange | None) -> Iterable[tuple[str, LowRankChange]]:
    if found is None:
        return ()
    return found.changes() if isinstance(found, LoraChanges) else [(*DRAFTER_TARGETS, found)]


def _weights(number: int, target: str, change: LowRankChange) -> tuple[tuple[str, Tensor, int | None], ...]:
    """PEFT's name of A and of B, the weight, and the axis that tensor-parallel ranks split (None: replicated)."""
    (down_name, up_name), split_inputs = tensor_names(number, target), change.splits_inputs
    down, up = cast(Tensor, change.down.weight), cast(Tensor, change.up.weight)
    return (down_name, down, 1 if split_inputs else None), (up_name, up, None if split_inputs else 0)


def _whole(part: Tensor, axis: int) -> Tensor:
    """All-gathers a weight over tensor-parallel ranks; on the CPU."""
    parts = all_gather(part.detach().contiguous(), parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=axis).cpu()
