"""`run.dry=build`: builds the model on the meta device as each rank of the full layout would, and counts parameters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from rich.table import Table

from nld_train.config.counts import parameter_count, rank_parameter_counts
from nld_train.config.schema import Config
from nld_train.console import plain_console
from nld_train.model import cpu_patches


def build_plan(config: Config) -> int:
    """Prints, per pipeline stage, the parameters of a rank as counted from the settings and as built.

    Returns:
        0 if they agree, 1 otherwise.
    """
    built = built_parameter_counts(config, int(os.environ.get("WORLD_SIZE", config.run.plan_world_size)))
    counted = rank_parameter_counts(config)
    table = Table(
        "pipeline stage", "parameters counted", "parameters built", title=f"{config.run.name}: parameters per rank"
    )
    for stage, (expected, found) in enumerate(zip(counted, built, strict=True)):
        table.add_row(str(stage), f"{expected:,}", f"{found:,}")
    console = plain_console(width=120)
    console.print(table)
    console.print(f"model: {parameter_count(config.model):,} parameters, padding and replicas not counted")
    return 0 if counted == built else 1


def built_parameter_counts(config: Config, world_size: int) -> tuple[int, ...]:
    """Parameters of one rank of each pipeline stage, all its virtual stages together.

    Args:
        config: the run.
        world_size: processes of the full layout; none of them is started.
    """
    cpu_patches.install()
    config = _without_kernels(config)
    data_size = world_size // (config.parallel.tensor * config.parallel.pipeline)
    first_ranks = [stage * config.parallel.tensor * data_size for stage in range(config.parallel.pipeline)]
    return tuple(_count_on(config, rank, world_size) for rank in first_ranks)


def _without_kernels(config: Config) -> Config:
    """The settings without CUDA and Transformer Engine kernels, which do not change the weights."""
    execution = replace(config.execution, layers="local", fp8="none", compile="none")
    return replace(config, execution=execution, parallel=replace(config.parallel, overlap_tensor=False))


def _count_on(config: Config, rank: int, world_size: int) -> int:
    from nld_train.model.build import build_model, transformer_config

    device = torch.device("meta")
    with _fake_groups(config, rank, world_size):
        chunks = build_model(config, transformer_config(config, torch.device("cpu")), device)
    return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())


@contextmanager
def _fake_groups(config: Config, rank: int, world_size: int) -> Iterator[None]:
    """Megatron's groups of one rank of the full layout, over a process group without communication."""
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.parallel.tensor,
            pipeline_model_parallel_size=config.parallel.pipeline,
            virtual_pipeline_model_parallel_size=config.parallel.virtual_pipeline,
            context_parallel_size=config.parallel.context,
            create_gloo_process_groups=False,
        )
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
