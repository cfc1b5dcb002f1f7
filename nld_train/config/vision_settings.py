"""A vision tower and projector under the names of a Mistral3 wrapper's `config.json`, as transformers reads it."""

from __future__ import annotations

from typing import Any

from nld_train.config.schema import VisionConfig
from nld_train.config.vision_tensors import CHANNELS


def vision_settings(vision: VisionConfig) -> dict[str, Any]:
    """The `vision_config` of a Mistral3 wrapper's `config.json`."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    return {
        "model_type": "pixtral",
        **{name: getattr(vision, name) for name in names},
        "head_dim": vision.hidden_size // vision.num_attention_heads,
        "hidden_act": vision.hidden_act,
        "num_channels": CHANNELS,
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
    }


def projector_settings(vision: VisionConfig) -> dict[str, Any]:
    """The keys of a Mistral3 wrapper's `config.json` that describe its projector."""
    return {
        "image_token_index": vision.image_token_id,
        "spatial_merge_size": vision.spatial_merge_size,
        "projector_hidden_act": vision.projector_hidden_act,
        "multimodal_projector_bias": vision.multimodal_projector_bias,
        "vision_feature_layer": -1,
    }
