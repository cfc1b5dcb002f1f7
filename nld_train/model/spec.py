"""The layers of a Ministral3 decoder as a Megatron-Core spec, from Transformer Engine's modules or Megatron's own."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from nld_train.config.attention_backends import ATTENTION_BACKENDS, AUTO, default_backend, names_of
from nld_train.errors import UserError
from nld_train.model.attention.core import Ministral3SelfAttention, TwoStreamAttention


class RMSNorm(torch.nn.RMSNorm):
    """Root-mean-square norm that supports sequence parallelism, which Megatron's wrapper of torch's norm does not.

    Megatron all-reduces the gradient of the marked weight over the tensor-parallel ranks, each of which has only its
    part of the sequence.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def resolve_layers(layers: Literal["auto", "transformer_engine", "local"], device: torch.device) -> str:
    """`transformer_engine` or `local`, for the key `execution.layers`.

    Raises:
        UserError: Transformer Engine is selected where it is not installed or there is no CUDA.
    """
    available = device.type == "cuda" and find_spec("transformer_engine") is not None
    if layers == "auto":
        return "transformer_engine" if available else "local"
    if layers == "transformer_engine" and not available:
        raise UserError(
            "execution.layers: transformer_engine needs a CUDA device and the package transformer-engine; "
            "install nld-train[h100] or set execution.layers=local"
        )
    return layers


def resolve_attention(attention: str, device: torch.device) -> str:
    """Name of the attention backend, for the key `execution.attention`.

    Raises:
        UserError: the backend does not run on this device.
    """
    if attention == AUTO:
        return default_backend(device.type)
    if device.type == "cpu" and "cpu" not in ATTENTION_BACKENDS[attention].runs_on:
        valid = names_of(lambda backend: "cpu" in backend.runs_on)
        raise UserError(f"execution.attention: {attention} needs a CUDA device; use {valid}")
    return attention


def block_spec(
    config: TransformerConfig, layers: str, attention: str, rotary: str, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage.

    Args:
        config: Megatron's configuration.
        layers: `transformer_engine` or `local`.
        attention: name of the attention backend.
        rotary: `compiled` or `plain`.
        vp_stage: virtual pipeline stage, where there are several.
    """
    layer = _layer_spec(layers)
    attention_spec = layer.submodules.self_attention
    attention_spec.module = Ministral3SelfAttention
    attention_spec.params = {**attention_spec.params, "rotary": rotary}
    attention_spec.submodules.core_attention = partial(TwoStreamAttention, attention)
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=_final_norm(layers))


def _layer_spec(layers: str) -> ModuleSpec:
    if layers == "transformer_engine":
        return get_gpt_layer_with_transformer_engine_spec()
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
    return layer


def _final_norm(layers: str) -> Any:
    if layers == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        return TENorm
    return RMSNorm
