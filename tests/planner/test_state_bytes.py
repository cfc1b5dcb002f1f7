"""Counted bytes of weights, gradients and optimizer state are those of a real build, on every rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import astuple

import pytest
from real_builds import built_state_bytes, layout_config

from nld_train.config import counts
from nld_train.config.compose import compose_config
from nld_train.config.counts import rank_parameter_counts
from nld_train.config.schema import LoraConfig
from nld_train.planner import buffers
from nld_train.planner.buffers import chunk_weights, state_bytes
from nld_train.planner.trained import Trained

LAYOUTS = {
    "one": (1, ()),
    "data": (4, ()),
    "tensor": (4, ("parallel.tensor=2", "parallel.sequence=true")),
    "pipeline": (6, ("parallel.pipeline=2", "batch.global_size=96")),
    "virtual": (4, ("parallel.pipeline=2", "parallel.virtual_pipeline=2")),
    "context": (4, ("parallel.context=2",)),
    "context and tensor": (8, ("parallel.context=2", "parallel.tensor=2", "parallel.pipeline=2")),
    "all": (8, ("parallel.tensor=2", "parallel.pipeline=2", "parallel.virtual_pipeline=2")),
    # 67 rows of the table, and 7 ranks: nothing divides.
    "odd": (7, ("batch.global_size=56",)),
}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_are_those_of_a_real_build(name: str, precision: str) -> None:
    world, overrides = LAYOUTS[name]
    config = layout_config(world, *overrides, f"execution.precision={precision}")
    copies = world // (config.parallel.tensor * config.parallel.pipeline)
    for pipeline_rank in range(config.parallel.pipeline):
        for data_rank in range(copies):
            # Tensor ranks lie next to each other, then data ranks, then pipeline ranks.
            rank = (pipeline_rank * copies + data_rank) * config.parallel.tensor
            counted = state_bytes(config, world, pipeline_rank, data_rank)
            found = built_state_bytes(config, rank, world)
            assert astuple(counted) == found, (pipeline_rank, data_rank)


@pytest.mark.parametrize("name", ["one", "all", "odd"])
def test_bytes_with_a_lora_are_those_of_a_real_build(name: str) -> None:
    world, overrides = LAYOUTS[name]
    config = layout_config(world, *overrides, "execution.precision=bf16")
    for lora in (LoraConfig(3, 6), LoraConfig(4, 8, ("k_proj", "o_proj", "up_proj"))):
        for rank in (0, world - 1):
            copies = world // (config.parallel.tensor * config.parallel.pipeline)
            pipeline_rank, data_rank = divmod(rank // config.parallel.tensor, copies)
            counted = state_bytes(config, world, pipeline_rank, data_rank, Trained("text", lora))
            found = built_state_bytes(config, rank, world, Trained("text", lora))
            assert astuple(counted) == found, (lora, rank)
            assert counted.gradients < counted.weights


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tiny model fills none of the real ones."""
    monkeypatch.setattr(counts, "BUCKET", 5000)
    monkeypatch.setattr(counts, "BUCKET_PER_RANK", 0)
    buffers._state_bytes.cache_clear()
    yield
    buffers._state_bytes.cache_clear()


@pytest.mark.parametrize("name", ["data", "virtual", "context and tensor"])
@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.usefixtures("small_buckets")
def test_bytes_in_buckets_are_those_of_a_real_build(name: str, overlap: str) -> None:
    """In every chunk and on every pipeline rank, whether or not their reduction overlaps the backward pass."""
    world, overrides = LAYOUTS[name]
    config = layout_config(
        world, *overrides, "batch.global_size=96", "execution.precision=bf16", f"parallel.overlap_grad_reduce={overlap}"
    )
    copies = world // (config.parallel.tensor * config.parallel.pipeline)
    for pipeline_rank, data_rank in itertools.product(range(config.parallel.pipeline), {0, copies - 1}):
        rank = (pipeline_rank * copies + data_rank) * config.parallel.tensor
        counted = state_bytes(config, world, pipeline_rank, data_rank)
        assert astuple(counted) == built_state_bytes(config, rank, world)
        # A save gathers a bucket at a time, which is a few weights: without buckets it would be all of them.
        whole = 4 * rank_parameter_counts(config)[pipeline_rank]
        assert counted.gathered < whole / 2
        assert counted.gradients > whole


@pytest.mark.parametrize("size", ["3b", "8b", "14b"])
def test_weights_are_the_counted_parameters(size: str) -> None:
    config = compose_config([f"experiment=paper_{size}", "run.dry=true", "parallel.pipeline=2"])
    for rank, count in enumerate(rank_parameter_counts(config)):
        weights = chunk_weights(config.model, config.parallel, config.model.vocab_size, rank)
        assert sum(sum(chunk) for chunk in weights) == count


def test_shards_add_up() -> None:
    config = compose_config(["experiment=paper_8b", "run.dry=true"])
    processes = 256
    replicas = processes // config.parallel.tensor
    shards = [state_bytes(config, processes, 0, rank).optimizer for rank in range(replicas)]
    (count,) = rank_parameter_counts(config)
    assert sum(shards) == 12 * count
    assert max(shards) - shards[0] < 12 * replicas * 16
