"""Ministral3's rotary embedding and query scale; the frequencies come from `transformers`.

See docs/method.md, "Model shapes".
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from nld_train.config.rope import ROPE_TYPES
from nld_train.config.schema import ModelConfig
from nld_train.errors import UserError
from nld_train.model.compiled import CompiledFunction


def inverse_frequencies(model: ModelConfig) -> tuple[Tensor, float]:
    """The frequencies that `transformers` computes for this model's `rope_parameters`.

    Returns:
        float32 `[head_dim / 2]` inverse frequencies, and the factor on cosine and sine.

    Raises:
        UserError: a rope_type that is not supported, such as one whose frequencies change with the input.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_type = model.rope_parameters.rope_type
    if rope_type not in ROPE_TYPES:
        raise UserError(
            f"model.rope_parameters.rope_type: {rope_type!r} is not supported; use one of {', '.join(ROPE_TYPES)}"
        )
    parameters = {k: v for k, v in dataclasses.asdict(model.rope_parameters).items() if v is not None}
    if rope_type == "default":
        # Default frequencies are linear scaling with factor 1.
        rope_type, parameters = "linear", {**parameters, "rope_type": "linear", "factor": 1.0}
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](_transformers_config(model, parameters), torch.device("cpu"))
    return frequencies.float(), float(factor)


def _transformers_config(model: ModelConfig, rope_parameters: dict[str, object]) -> object:
    from transformers import Ministral3Config

    return Ministral3Config(
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_position_embeddings,
        rope_parameters={"max_position_embeddings": model.max_position_embeddings, **rope_parameters},
    )


class RotaryEmbedding:
    """Cosines, sines and query scales of any positions.

    Args:
        model: shapes and `rope_parameters`.
        device: of the results.
    """

    def __init__(self, model: ModelConfig, device: torch.device) -> None:
        frequencies, self.factor = inverse_frequencies(model)
        self.frequencies = frequencies.to(device)
        self.scaling_beta = model.rope_parameters.llama_4_scaling_beta
        self.original_length = model.rope_parameters.original_max_position_embeddings

    def cosine_and_sine(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Two tensors `[..., head_dim]` for int positions `[...]`; angles are computed in float32."""
        angles = positions.to(self.frequencies.device).float().unsqueeze(-1) * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)

    def query_scale(self, positions: Tensor, dtype: torch.dtype, largest: int | None = None) -> Tensor | None:
        """`1 + beta * ln(1 + floor(position / original_length))` for int positions `[...]`, or None where it is 1.

        Llama 4's attention temperature for long contexts (`llama_4_scaling_beta`). `largest` is the largest position,
        or one that is larger than all of these; without it the host reads the positions.
        """
        if not self.scaling_beta or not self.original_length:
            return None
        if not (
            bool((positions >= self.original_length).any()) if largest is None else largest >= self.original_length
        ):
            return None
        beyond = torch.div(positions, self.original_length, rounding_mode="floor")
        return (1 + self.scaling_beta * torch.log1p(beyond.float())).to(self.frequencies.device, dtype)


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates `[..., head_dim]` by angles given as cosine and sine that broadcast to it (halves, not interleaved)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine


def rotate_both(
    query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor, query_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Query and key rotated by `rotate`, the query times its scale, which broadcasts to it."""
    query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
    return query if query_scale is None else query * query_scale, key


# With and without gradients, for each length and batch size of training and validation, with and without a query scale.
_VARIANTS = 32


@cache
def compiled_rotation() -> CompiledFunction:
    """`rotate_both` as one kernel, where plain torch writes and reads each of nine intermediate results.

    Kernels of other libraries take one position per index of the sequence, the same in all rows, where each row of
    packed documents has its own, and none takes the factor of YaRN.
    """
    return CompiledFunction(rotate_both, "the rotary embedding", "execution.rotary", _VARIANTS)


def resolve_rotary(rotary: Literal["auto", "compiled", "plain"], device: torch.device) -> str:
    """`compiled` or `plain`, for the key `execution.rotary`."""
    if rotary == "auto":
        return "compiled" if device.type == "cuda" else "plain"
    return rotary
