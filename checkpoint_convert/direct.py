"""Starts a run from a Hugging Face directory without conversion: each process reads its own shards."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.mapping import entry_of_key, entry_shape, sizes
from checkpoint_convert.source_config import OWN_VISION, WRAPPER, model_config, read_source_config
from checkpoint_convert.weights import fill_rows
from nld_train.config.schema import ModelConfig
from nld_train.config.vision_tensors import is_vision_key
from nld_train.errors import UserError
from nld_train.model.ministral3 import Ministral3Model
from nld_train.training.checkpoint.scaling_state import split_state


def model_config_of(directory: Path, mask_token_id: int | None = None, vision: bool | None = None) -> dict[str, Any]:
    """The model of a Hugging Face directory, in the form of a checkpoint's `model.json`.

    Args:
        directory: with a `config.json`.
        mask_token_id: of the run, for a model whose config has none.
        vision: whether with its vision tower; None: if it has one.

    Raises:
        UserError: the config cannot be read, or describes an unsupported model.
    """
    source = read_source_config(directory)
    has_tower = source.architecture in (WRAPPER, OWN_VISION) and "vision_config" in source.outer
    return asdict(model_config(source, mask_token_id, has_tower if vision is None else vision))


@torch.no_grad()
def load_hugging_face(
    directory: Path, chunks: list[Ministral3Model], model: ModelConfig, only: Literal["text", "vision"] | None = None
) -> None:
    """Fills this rank's part of the model, under any layout; rows that pad the vocabulary become 0.

    Args:
        directory: with `config.json` and safetensors files.
        chunks: this rank's chunks, not wrapped.
        model: of the run; its mask token is used if the directory's config has none.
        only: `text` or `vision`: the other part stays as it is. None: both, where the model has both.

    Raises:
        UserError: the directory cannot be read, or its model has other shapes.
    """
    weights = HuggingFaceWeights(directory, model.mask_token_id, model.vision is not None and only != "text")
    if only != "vision" and (
        sizes(weights.model) != sizes(model) or weights.model.num_hidden_layers != model.num_hidden_layers
    ):
        raise UserError(f"init.checkpoint: {directory} has a model of other shapes than the run's")
    for chunk in chunks:
        state, _ = split_state(chunk)
        apply_factories(state)
        for shard in nested_values(state):
            if isinstance(shard, ShardedTensor) and _is_wanted(shard.key, only):
                _fill(shard, weights)


def _is_wanted(key: str, only: Literal["text", "vision"] | None) -> bool:
    return only is None or is_vision_key(key) == (only == "vision")


def _fill(shard: ShardedTensor, weights: HuggingFaceWeights) -> None:
    """Fills one shard: a box of a Megatron tensor, in one layer if the tensor's first axis is the layer."""
    entry, axes = entry_of_key(shard.key, weights.model), shard.prepend_axis_num
    layer = shard.global_offset[0] if axes else None
    start, data = shard.global_offset[axes], shard.data
    assert data is not None
    rows = min(data.shape[0], entry_shape(entry, weights.model)[0] - start)
    first = shard.global_offset[-1] if data.dim() > 1 else 0
    columns = slice(first, first + data.shape[-1])
    if rows > 0:
        fill_rows(weights, entry, layer, start, data[:rows], columns)
    data[max(0, rows) :].zero_()
