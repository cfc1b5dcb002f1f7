"""The drafter adapter on Megatron's layers: a low-rank update of each attention's output projection.

It is on only where `LayerContext.adapted` of a forward pass is 1: in the noisy stream of the draft pass in training,
and in the drafting forwards of linear self-speculation. Elsewhere the model computes as without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nld_train.model.adapter_files import AdapterShape, tensor_names
from nld_train.model.build import mark_shards
from nld_train.model.initialize import copy_part, generator_of, shards
from nld_train.model.ministral3 import Ministral3Model


class LowRankAdapter(MegatronModule):
    """`lora_alpha / rank * B A x` beside an output projection `W x` (LoRA, Hu et al. 2021, arXiv 2106.09685).

    A is sharded over tensor-parallel ranks as W is, along its inputs; B is replicated.

    Args:
        config: Megatron's.
        shape: rank and lora_alpha.
    """

    def __init__(self, config: TransformerConfig, shape: AdapterShape) -> None:
        super().__init__(config)
        self.shape = shape
        self.down = RowParallelLinear(
            config.kv_channels * config.num_attention_heads,
            shape.rank,
            config=config,
            init_method=torch.nn.init.zeros_,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
        )
        self.up = torch.nn.Linear(shape.rank, config.hidden_size, bias=False, dtype=config.params_dtype)
        # Each rank has a shard of the sequence: Megatron all-reduces the gradients of weights with this mark.
        self.up.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        mark_shards(self)

    def forward(self, inputs: Tensor, adapted: Tensor) -> Tensor:
        """The term that is added to the projection's output.

        Args:
            inputs: `[S, b, heads * head_dim / tensor]`, the inputs of the projection.
            adapted: 1 where the adapter is on, 0 elsewhere; broadcast to `[S, b, 1]`.

        Returns:
            `[S, b, h]`, or its sequence-parallel shard.
        """
        low_rank: Tensor = self.down(inputs * adapted)[0]
        update: Tensor = self.up(low_rank) * self.shape.scale
        return update


def attach_adapter(chunks: list[Ministral3Model], shape: AdapterShape) -> None:
    """Adds an adapter with zero weights to every layer of a model, and freezes all other weights.

    Args:
        chunks: of the model on this rank, unwrapped.
        shape: rank and lora_alpha.
    """
    for chunk in chunks:
        chunk.requires_grad_(False)
        for layer in chunk.decoder.layers:
            weight = layer.self_attention.linear_proj.weight
            adapter = LowRankAdapter(chunk.config, shape).to(weight)
            torch.nn.init.zeros_(adapter.down.weight)
            torch.nn.init.zeros_(adapter.up.weight)
            layer.self_attention.adapter = adapter


@torch.no_grad()
def initialize_adapter(chunks: list[Ministral3Model], seed: int) -> None:
    """PEFT's initialisation, the same under every layout: A uniform within `1 / sqrt(inputs)`, B zero."""
    for chunk in chunks:
        for shard in shards(chunk.sharded_state_dict()):
            if not shard.key.endswith("adapter.down.weight"):
                continue
            axes = shard.prepend_axis_num
            layer, offset = shard.global_offset[:axes], shard.global_offset[axes:]
            whole = torch.empty(shard.global_shape[axes:], dtype=torch.float32)
            bound = 1 / math.sqrt(whole.shape[1])
            whole.uniform_(-bound, bound, generator=generator_of(seed, f"{shard.key}/{'.'.join(map(str, layer))}"))
            assert shard.data is not None
            copy_part(shard.data, whole, offset)


def adapter_shape(chunks: list[Ministral3Model]) -> AdapterShape | None:
    """Rank and lora_alpha of a model's adapter, or None where it has none."""
    return next((adapter.shape for _, adapter in _adapters(chunks)), None)


def adapter_tensors(chunks: list[Ministral3Model]) -> dict[str, Tensor]:
    """The whole adapter under PEFT's names, on the CPU of rank 0 and empty elsewhere; a collective call."""
    own: dict[str, Tensor] = {}
    for number, adapter in _adapters(chunks):
        down, up = tensor_names(number)
        own |= {down: _whole(adapter.down.weight), up: adapter.up.weight.detach().to("cpu", copy=True)}
    first_replica = (
        parallel_state.get_data_parallel_rank() == 0 and parallel_state.get_tensor_model_parallel_rank() == 0
    )
    parts: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(own if first_replica else {}, parts if dist.get_rank() == 0 else None)
    return {name: tensor for part in parts if part for name, tensor in part.items()}


@torch.no_grad()
def load_adapter(chunks: list[Ministral3Model], tensors: dict[str, Tensor]) -> None:
    """Fills a model's adapter; every rank copies its shard.

    Args:
        chunks: with an adapter of the same rank.
        tensors: the whole adapter, under PEFT's names.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    for number, adapter in _adapters(chunks):
        down, up = tensor_names(number)
        width = adapter.down.weight.shape[1]
        adapter.down.weight.copy_(tensors[down][:, rank * width : (rank + 1) * width])
        adapter.up.weight.copy_(tensors[up])


def _adapters(chunks: list[Ministral3Model]) -> Iterator[tuple[int, LowRankAdapter]]:
    """Each adapter with the number of its layer in the whole model, from 0."""
    for chunk in chunks:
        for layer in chunk.decoder.layers:
            if layer.self_attention.adapter is not None:
                yield layer.layer_number - 1, layer.self_attention.adapter


def _whole(part: Tensor) -> Tensor:
    """All-gathers `[rank, inputs]` over tensor-parallel ranks; on the CPU."""
    parts = [torch.empty_like(part) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
    dist.all_gather(parts, part.detach().contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=1).cpu()
