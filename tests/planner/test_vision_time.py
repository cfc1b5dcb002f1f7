"""The planned arithmetic of a vision tower is what training counts, with recomputation, on the first stage."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from pictures import vision_override
from real_builds import layout_config

from nld_train.config.counts import step_flops
from nld_train.config.schema import Config, TrainedWeights
from nld_train.config.vision_tensors import picture_products
from nld_train.planner.hardware import assumptions
from nld_train.planner.step_time import step_time
from nld_train.planner.trained import Trained
from nld_train.training.stages.joint import JOINT

HARDWARE = replace(assumptions({}).hardware, peak_tflops=1.0, joint_utilisation=1.0)


def _config(*overrides: str, world: int = 1, **shape: object) -> Config:
    return layout_config(world, f"model.vision={vision_override(**shape)}", "batch.sequence_length=128", *overrides)


def _operations(config: Config, trained: TrainedWeights, world: int = 1) -> float:
    """Of a step on the slowest process."""
    return step_time(config, world, JOINT, HARDWARE, 8, Trained(trained)).arithmetic * HARDWARE.peak_tflops * 1e12


@pytest.mark.parametrize("trained", get_args(TrainedWeights))
def test_a_step_on_one_device_has_the_operations_that_training_counts(trained: TrainedWeights) -> None:
    config = _config("execution.recompute=none", "execution.head_chunk_rows=100000")
    stage = replace(config.stages["joint"], trained_weights=trained)
    assert _operations(config, trained) == pytest.approx(step_flops(config, stage), rel=1e-12)


def test_a_lora_leaves_the_tower_frozen() -> None:
    config = _config(
        "execution.recompute=none", "execution.head_chunk_rows=100000", "stages.joint.lora={rank: 2, lora_alpha: 4}"
    )
    stage = config.stages["joint"]
    time = step_time(config, 1, JOINT, HARDWARE, 8, Trained.of(stage))
    assert time.arithmetic * 1e12 == pytest.approx(step_flops(config, stage), rel=1e-12)


def test_recomputation_is_of_the_layers_of_a_trained_tower() -> None:
    full = _config("execution.recompute=full")
    without = replace(full, model=replace(full.model, vision=None))
    products = picture_products(full.model, 128)
    samples = full.batch.global_size
    forward = 2 * samples * (products.patches + products.layers + products.projector)
    again = 2 * samples * products.layers
    assert _operations(full, "all") - _operations(without, "all") == pytest.approx(3 * forward + again)
    assert _operations(full, "text") - _operations(without, "all") == pytest.approx(forward)


def test_the_first_stage_is_the_slowest_where_its_tower_costs_more_than_the_head() -> None:
    """Every tensor-parallel rank has the whole tower, and a part of the head."""
    for shape, tower_decides in (({"num_hidden_layers": 8}, True), ({"num_hidden_layers": 1, "image_size": 8}, False)):
        pipeline = _config("parallel.pipeline=2", world=2, **shape)
        text = replace(pipeline, model=replace(pipeline.model, vision=None))
        more = _operations(pipeline, "all", 2) - _operations(text, "all", 2)
        assert (more > 0) == tower_decides
    tensor = _config("parallel.tensor=2", world=2)
    text = replace(tensor, model=replace(tensor.model, vision=None))
    own = step_flops(tensor, tensor.stages["joint"]) - step_flops(text, text.stages["joint"])
    assert _operations(tensor, "all", 2) - _operations(text, "all", 2) == pytest.approx(own)
