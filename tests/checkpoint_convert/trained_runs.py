"""A tiny run over prepared text, whose samples are longer than the original length of its rotary embedding."""

from __future__ import annotations

import random
from pathlib import Path

from tiny_runs import data_overrides, train_here

from nld_train.commands import data as cli

ORIGINAL_LENGTH = 16
BLOCK_SIZE, SAMPLE_TOKENS, SAMPLES_PER_STEP = 8, 48, 8
ALPHA, AR_WEIGHT = 0.4, 0.8
# No two sizes are equal, and heads x head_dim is not the width.
MODEL = (
    "model.hidden_size=40",
    "model.intermediate_size=56",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=6",
    "model.num_key_value_heads=2",
    "model.head_dim=20",
    "model.initializer_range=0.2",
    "model.max_position_embeddings=256",
    "model.rope_parameters.rope_type=yarn",
    "model.rope_parameters.factor=4",
    f"model.rope_parameters.original_max_position_embeddings={ORIGINAL_LENGTH}",
    "model.rope_parameters.beta_fast=30",
    "model.rope_parameters.beta_slow=1.5",
    "model.rope_parameters.mscale=1",
    "model.rope_parameters.mscale_all_dim=0.7",
    "model.rope_parameters.llama_4_scaling_beta=0.1",
)


def train(folder: Path) -> Path:
    """Prepares text and trains both stages below `folder`; returns the run's directory."""
    _prepare(folder)
    return train_here(folder / "run", *_settings(folder))


def train_on(folder: Path, directory: Path, checkpoint: Path, *overrides: str) -> Path:
    """One step of the joint stage over the same text, from any kind of checkpoint; returns the run's directory."""
    starts = (f"init.checkpoint={checkpoint}", "run.stages=[joint]", "run.max_steps=1")
    return train_here(directory, *_settings(folder), *starts, *overrides)


def _settings(folder: Path) -> tuple[str, ...]:
    step = SAMPLES_PER_STEP * SAMPLE_TOKENS
    return (
        *MODEL,
        *data_overrides(f"{folder}/data/sentences"),
        f"data.tokenizer={folder}/data/tokenizer",
        f"diffusion.block_size={BLOCK_SIZE}",
        f"batch.global_size={SAMPLES_PER_STEP}",
        "batch.micro_size=4",
        f"batch.sequence_length={SAMPLE_TOKENS}",
        f"stages.ar.tokens={20 * step}",
        f"stages.joint.tokens={20 * step}",
        f"stages.joint.alpha={ALPHA}",
        f"stages.joint.ar_weight={AR_WEIGHT}",
        "stages.ar.schedule.learning_rate=0.01",
        "stages.joint.schedule.learning_rate=0.01",
        "run.name=tiny",
    )


def _prepare(folder: Path) -> None:
    """Sentences of few words, as byte tokens."""
    generator = random.Random(3)
    words = ("one", "tree", "stands", "near", "the", "old", "river", "and", "falls")
    lines = [" ".join(generator.choices(words, k=12)) + "." for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(lines))
    text, out = f"{folder}/text.txt", f"{folder}/data"
    arguments = ["--out", out, "--name", "sentences", "--tokenizer", "bytes", "--documents-per", "line"]
    assert cli.main(["prepare", text, *arguments, "--workers", "1"]) == 0
