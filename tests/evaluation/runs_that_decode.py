"""Tiny runs over a corpus of bytes that decode while they train, and what they recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_runs import freeze_libraries, newest_checkpoint, records_of, saved_tensors, undrawn

from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.config.validate import validate

WORDS = ("seven", "times", "eight", "is", "fifty-six", "and", "that", "r\u00e9sum\u00e9", "ends", "here")
# Large starting weights, so that a wrong cache or a wrong layout is not hidden behind logits that are all alike.
SHAPES = (
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=4",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2",
    "model.head_dim=8",
    "model.initializer_range=0.2",
    "model.max_position_embeddings=96",
    "diffusion.block_size=8",
    "batch.global_size=4",
    "batch.micro_size=2",
    "batch.sequence_length=48",
)
AR_STEPS, JOINT_STEPS = 2, 5
STEPS = (
    f"stages.ar.tokens={AR_STEPS * 4 * 48}",
    f"stages.joint.tokens={JOINT_STEPS * 4 * 48}",
    "stages.ar.schedule.learning_rate=0.01",
    "stages.joint.schedule.learning_rate=0.01",
)
EVALUATION = (
    "evaluation.every=2",
    "evaluation.prompts=3",
    "evaluation.prompt_tokens=12",
    "evaluation.max_new_tokens=14",
    "evaluation.block_length=4",
    "evaluation.threshold=0.3",
)
# What a clock decides.
TIMED = ("seconds", "share", "tokens_per_second")


def config_of(*overrides: str) -> Config:
    config = compose_config(overrides)
    validate(config, world_size=1)
    return config


def train(*overrides: str, hooked: bool) -> Path:
    """Trains in this process, with or without decoding; returns the directory."""
    from nld_train.training.loop import run

    config = config_of(*overrides, *(() if hooked else ("run.hooks=[validation]",)))
    freeze_libraries()
    with undrawn():
        assert run.train(config) == 0
    return Path(config.run.dir)


def decodings(directory: Path) -> dict[int, dict[str, Any]]:
    """The records of each step that decoded, without what a clock decides."""
    return {record["step"]: untimed(record["decoding"]) for record in records_of(directory) if "decoding" in record}


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in TIMED}
    return {name: untimed(value) if isinstance(value, dict) else value for name, value in kept.items()}


def assert_same_training(directory: Path, other: Path) -> None:
    """Equal weights, optimizer state and losses, to the last bit."""
    tensors, others = saved_tensors(newest_checkpoint(directory)), saved_tensors(newest_checkpoint(other))
    assert tensors.keys() == others.keys()
    assert any("exp_avg" in name for name in tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert [record["loss"] for record in records_of(directory)] == [record["loss"] for record in records_of(other)]
