"""Megatron's own buffers and optimizer, really built on the CPU as one rank of a larger layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_runs import TINY_MODEL

from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.config.validate import validate
from nld_train.planner.trained import ALL, Trained

SHAPE = (*TINY_MODEL, "model.num_hidden_layers=8", "model.num_key_value_heads=4")

# The names of data-parallel groups in Megatron's module of parallel state.
GROUPS = (
    "_DATA_PARALLEL_GROUP",
    "_DATA_PARALLEL_GROUP_WITH_CP",
    "_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP",
    "_EXPERT_DATA_PARALLEL_GROUP",
    "_INTRA_PARTIAL_EXPERT_DATA_PARALLEL_GROUP",
)


def layout_config(world: int, *overrides: str) -> Config:
    """A tiny run in a layout, checked."""
    config = compose_config([*SHAPE, "run.dry=true", "validation.every=0", "batch.global_size=64", *overrides])
    validate(config, world)
    return config


@contextmanager
def rank_of(config: Config, rank: int, world: int) -> Iterator[None]:
    """This process as one rank of a layout, over groups that send nothing."""
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from nld_train.model import cpu_patches

    cpu_patches.install()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.parallel.tensor,
            pipeline_model_parallel_size=config.parallel.pipeline,
            virtual_pipeline_model_parallel_size=config.parallel.virtual_pipeline,
            context_parallel_size=config.parallel.context,
            create_gloo_process_groups=False,
        )
        # Megatron asks for groups of CPUs too, of which torch has no kind that sends nothing.
        for name in GROUPS:
            setattr(parallel_state, f"{name}_GLOO", getattr(parallel_state, name))
        tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def built_state_bytes(config: Config, rank: int, world: int, trained: Trained = ALL) -> tuple[int, ...]:
    """Bytes of weights, gradients and optimizer state of a rank, after a step, and of what its save gathers at once."""
    from nld_train.model.adapter_files import AdapterShape
    from nld_train.model.adapters import LORA
    from nld_train.model.build import build_model, resolve_dtype, transformer_config
    from nld_train.training.loop.optimizer import build_optimizer, wrap_model
    from nld_train.training.loop.trained_weights import train_adapter, train_weights

    device = torch.device("cpu")
    with rank_of(config, rank, world):
        megatron = transformer_config(config, device)
        chunks = build_model(config, megatron, device)
        for chunk in chunks:
            for parameter in chunk.parameters():
                torch.nn.init.ones_(parameter)
        if (lora := trained.lora) is not None:
            chunks = train_adapter(chunks, LORA, AdapterShape(lora.rank, lora.lora_alpha, lora.targets), seed=1)
        else:
            chunks = train_weights(chunks, trained.weights)
        model = wrap_model(config, megatron, chunks)
        optimizer = build_optimizer(config, config.stages["joint"], model, resolve_dtype(config, device))
        optimizer.prepare_grads()
        optimizer.step_with_ready_grads()
        buffers = [buffer for chunk in model for buffer in chunk.buffers]
        frozen = [parameter for chunk in chunks for parameter in chunk.parameters() if not parameter.requires_grad]
        assert bool(frozen) == (trained != ALL)
        weights = sum(_bytes(buffer.param_data) for buffer in buffers) + sum(map(_bytes, frozen))
        gradients = sum(_bytes(buffer.grad_data) for buffer in buffers)
        with_gradients = [parameter for chunk in chunks for parameter in chunk.parameters() if parameter.requires_grad]
        assert all(_inside(parameter, buffers) for parameter in with_gradients)
        return weights, gradients, _optimizer_bytes(optimizer, buffers), _gathered_bytes(model, optimizer)


def _gathered_bytes(model: list[Any], optimizer: Any) -> int:
    """The largest all-gather of a save: what is received, and what is sent."""
    import torch.distributed as dist

    from nld_train.training.checkpoint.load import sharded_state

    sizes: list[int] = []

    def all_gather(received: list[torch.Tensor], sent: torch.Tensor, *_: Any) -> None:
        sizes.append(sum(map(_bytes, received)) + _bytes(sent))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather", all_gather)
        sharded_state(model, optimizer)
    return max(sizes)


def _optimizer_bytes(optimizer: Any, buffers: list[Any]) -> int:
    """Every tensor of the state, and the optimizer's own copies of weights, without views of the model's."""
    from nld_train.training.loop.optimizer import optimizer_parts

    total = 0
    for part in optimizer_parts(optimizer):
        inner = part.optimizer
        for group in inner.param_groups:
            for weight in group["params"]:
                total += sum(_bytes(value) for value in inner.state[weight].values())
                total += 0 if _inside(weight, buffers) else _bytes(weight)
    return total


def _inside(tensor: torch.Tensor, buffers: list[Any]) -> bool:
    storages = {buffer.param_data.untyped_storage().data_ptr() for buffer in buffers}
    return tensor.untyped_storage().data_ptr() in storages


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
