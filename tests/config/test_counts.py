"""Counts by formula against counts by hand."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from nld_train.config.compose import compose_config
from nld_train.config.counts import (
    causal_visible_pairs,
    joint_visible_pairs,
    layer_matrix_parameters,
    padded_vocabulary,
    parameter_count,
    rank_parameter_counts,
    remaining_flops,
    step_flops,
    training_flops,
)
from nld_train.config.low_rank import lora_parameters
from nld_train.config.plan import data_parallel_size, micro_batches, stage_plans, tokens_per_step, total_steps
from nld_train.config.schema import Config, LoraConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.training.stages.ar import AR
from nld_train.training.stages.joint import JOINT


def _pairs_one_by_one(length: int, block_size: int) -> int:
    """The rule of docs/method.md, "Streams and visibility", applied to each pair of the (2L)^2 square."""
    count = 0
    for query, key in product(range(2 * length), repeat=2):
        query_block, key_block = (query % length) // block_size, (key % length) // block_size
        noisy_query, noisy_key = query < length, key < length
        if noisy_query and noisy_key:
            count += query_block == key_block
        elif noisy_query:
            count += key_block < query_block
        elif not noisy_key:
            count += key <= query
    return count


@pytest.mark.parametrize("length", [1, 2, 7, 12, 16])
@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 12, 16, 40])
def test_visible_pairs_of_two_streams(length: int, block_size: int) -> None:
    assert joint_visible_pairs(length, block_size) == _pairs_one_by_one(length, block_size)
    if length % block_size == 0:
        assert joint_visible_pairs(length, block_size) == length * (2 * length + block_size + 1) // 2


@pytest.mark.parametrize("length", [1, 2, 9])
def test_visible_pairs_of_a_causal_pass(length: int) -> None:
    assert causal_visible_pairs(length) == sum(key <= query for query in range(length) for key in range(length))


def test_flops_of_a_sample_by_hand(tiny: Config) -> None:
    model = tiny.model
    # Weights that each position passes: query and output, key and value, the three of the MLP.
    layer = 128 * (4 * 32) * 2 + 128 * (2 * 32) * 2 + 3 * 128 * 384
    pair = 4 * (4 * 32 + 4 * 32)
    causal = 6 * (10 * 4 * layer + 10 * 260 * 128 + 55 * pair)
    assert training_flops(model, 10, causal_visible_pairs(10), 10) == causal
    joint = 6 * (20 * 4 * layer + 15 * 260 * 128 + _pairs_one_by_one(10, 4) * pair)
    assert training_flops(model, 20, joint_visible_pairs(10, 4), 15) == joint
    fewer = training_flops(model, 20, 0, 15)
    assert joint - fewer == 6 * _pairs_one_by_one(10, 4) * pair


def test_joint_step_costs_about_twice_an_ar_step() -> None:
    config = compose_config(["experiment=paper_8b"])
    assert AR.head_rows(4096, config.diffusion) == 4096
    assert JOINT.head_rows(4096, config.diffusion) == pytest.approx(4096 * 1.5005)
    ar, joint = (step_flops(config, config.stages[name]) for name in ("ar", "joint"))
    assert 1.9 < joint / ar < 2.1
    # About 6 operations per parameter and token, and some more for attention.
    assert 6.0 < ar / tokens_per_step(config) / parameter_count(config.model) < 6.6


@pytest.mark.parametrize("experiment", ["ablation_8b", "sft_8b"])
def test_without_an_ar_weight_the_head_has_no_ar_rows(experiment: str) -> None:
    config = compose_config([f"experiment={experiment}", "run.dry=true"])
    (stage,) = (config.stages[name] for name in config.run.stages)
    alone, length = replace(stage, ar_weight=0.0), config.batch.sequence_length
    model, size = config.model, config.batch.global_size
    head_of_a_row = 6 * model.vocab_size * model.hidden_size
    assert kind_of(stage).head_rows(length, config.diffusion) - length == pytest.approx(length * 0.5005)
    assert kind_of(alone).head_rows(length, config.diffusion) == pytest.approx(length * 0.5005)
    saved = step_flops(config, stage) - step_flops(config, alone)
    assert saved == pytest.approx(size * length * head_of_a_row)


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_ranks_hold_the_whole_model_between_them(change: Any, tensor: int, pipeline: int) -> None:
    config = change({"parallel.tensor": tensor, "parallel.pipeline": pipeline, "model.vocab_size": 261})
    model = config.model
    norms = (2 * model.num_hidden_layers + 1) * model.hidden_size
    padding = 2 * (padded_vocabulary(config) - 261) * model.hidden_size
    repeated = norms * (tensor - 1)
    counts = rank_parameter_counts(config)
    assert len(counts) == pipeline
    assert sum(counts) * tensor == parameter_count(model) + padding + repeated


def test_vocabulary_is_padded_to_equal_shares(change: Any) -> None:
    assert padded_vocabulary(change({"parallel.tensor": 8})) == 264
    assert padded_vocabulary(change({"parallel.tensor": 2})) == 260


def test_stages_are_whole_steps_one_after_another(change: Any) -> None:
    config = change(
        {"batch.global_size": 16, "stages.ar.tokens": 4096 * 3, "stages.joint.tokens": 4096 * 2 + 1, "run.max_steps": 2}
    )
    ar, joint = stage_plans(config)
    assert (ar.name, ar.first_step, ar.steps, ar.samples, ar.tokens) == ("ar", 0, 3, 48, 4096 * 3)
    assert (joint.name, joint.first_step, joint.steps, joint.samples) == ("joint", 3, 3, 48)
    assert joint.tokens == 4096 * 3 > config.stages["joint"].tokens
    assert (ar.stage.alpha, joint.stage.alpha) == (0.0, 0.3)
    assert total_steps(config) == 6
    only = replace(config, run=replace(config.run, stages=("joint",)))
    assert [plan.first_step for plan in stage_plans(only)] == [0]


def test_the_world_is_shared_out(change: Any) -> None:
    config = change({"parallel.tensor": 2, "parallel.pipeline": 2, "batch.global_size": 16, "batch.micro_size": 4})
    assert data_parallel_size(config, 8) == 2
    assert micro_batches(config, 8) == 2


def test_the_operations_that_are_left_are_those_of_each_stages_steps(tiny: Config) -> None:
    ar, joint = stage_plans(tiny)
    per_step = step_flops(tiny, ar.stage), step_flops(tiny, joint.stage)
    assert per_step[1] > 1.8 * per_step[0]
    assert remaining_flops(tiny, 0) == ar.steps * per_step[0] + joint.steps * per_step[1]
    assert remaining_flops(tiny, ar.steps - 1) == per_step[0] + joint.steps * per_step[1]
    assert remaining_flops(tiny, ar.steps + 1) == (joint.steps - 1) * per_step[1]
    assert remaining_flops(tiny, total_steps(tiny)) == 0


def test_a_lora_stage_counts_no_gradient_of_frozen_weights() -> None:
    """From the sizes of a tiny model, by hand: products of 2 operations; frozen ones twice, others three times."""
    config = compose_config(["run.stages=[ar]"])
    stage, model = config.stages["ar"], config.model
    length, layers, width = config.batch.sequence_length, model.num_hidden_layers, model.hidden_size
    lora = LoraConfig(4, 8, ("q_proj", "down_proj"))
    queries = model.num_attention_heads * model.head_dim
    numbers = 4 * (width + queries) + 4 * (model.intermediate_size + width)
    assert lora_parameters(model, lora) == layers * numbers
    body = length * layers * layer_matrix_parameters(model) + length * model.vocab_size * width
    attention = length * (length + 1) // 2 * layers * 2 * queries
    expected = 2 * (2 * body + 3 * attention + 3 * length * layers * numbers)
    found = step_flops(config, replace(stage, lora=lora)) / config.batch.global_size
    assert found == expected
    assert found < 0.75 * step_flops(config, stage) / config.batch.global_size
