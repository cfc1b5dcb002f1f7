"""Models of this repository filled from a checkpoint, and what they compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from torch import Tensor

from checkpoint_convert.checkpoints import open_weights
from checkpoint_convert.direct import load_hugging_face
from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.masking.layout import StreamLayout
from nld_train.model.build import build_model, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import StreamContext, register
from nld_train.training.checkpoint import load as checkpoint
from nld_train.training.checkpoint.manifest import write_manifest

CPU = torch.device("cpu")


def config_of(directory: Path, *overrides: str) -> Config:
    """A run with the model of a directory."""
    config = compose_config(["execution.device=cpu", *overrides])
    return replace(config, model=open_weights(directory).model)


def load_model(config: Config, directory: Path, direct: bool = False) -> list[Ministral3Model]:
    """This rank's chunks, from an imported checkpoint or straight from a Hugging Face directory."""
    chunks = build_model(config, transformer_config(config, CPU), CPU)
    initialize(chunks, config.model, seed=99)
    if direct:
        load_hugging_face(directory, chunks, config.model)
    else:
        checkpoint.load(directory, chunks, None)
    return chunks


def save_model(config: Config, chunks: list[Ministral3Model], directory: Path) -> None:
    """As a run saves its weights, with a manifest; on all ranks."""
    if torch.distributed.get_rank() == 0:
        directory.mkdir()
        (directory / "model.json").write_text(json.dumps(checkpoint_model(config)))
    torch.distributed.barrier()
    dist_checkpointing.save(checkpoint.sharded_state(chunks, None), str(directory))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        write_manifest(directory, {})


def checkpoint_model(config: Config) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(config.model)


@torch.no_grad()
def causal_logits(config: Config, model: Ministral3Model, tokens: Tensor) -> Tensor:
    """float32 `[L, vocab]` of one document `[1, L]`, by the model of a single process."""
    layout = StreamLayout.of(torch.zeros_like(tokens), config.diffusion.block_size, two_streams=False)
    handle = register(StreamContext.of(layout, RotaryEmbedding(config.model, CPU), torch.float32))
    return model(tokens, handle)
