"""Keys of the model's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from nld_train.config.schema.ranges import Count, CountOrZero, NotNegative, Positive

# Keys of `ModelConfig` that are sizes: integers of 1 or more.
SIZE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding, under the names of a Ministral3 `config.json`."""

    rope_type: Annotated[str, "default: plain rotary embedding; yarn: stretched to longer sequences."]
    rope_theta: Annotated[Positive, "Base of the rotary frequencies."]
    factor: Annotated[
        float | None,
        "yarn: how many times longer than the original length; above 0. Null with rope_type=default, as all keys of "
        "yarn.",
    ]
    original_max_position_embeddings: Annotated[
        int | None,
        "Length in tokens before stretching, and step of the query scale; above 0. Null where neither is used.",
    ]
    beta_fast: Annotated[
        float | None, "yarn: turns within the original length above which a frequency is not changed; above 0."
    ]
    beta_slow: Annotated[
        float | None, "yarn: turns within the original length below which a frequency is fully stretched; above 0."
    ]
    mscale: Annotated[
        float | None, "yarn: weight of the factor in the attention temperature, in the numerator; above 0."
    ]
    mscale_all_dim: Annotated[float | None, "yarn: the same weight in the denominator; above 0."]
    llama_4_scaling_beta: Annotated[
        NotNegative | None,
        "beta of the query scale 1 + beta * ln(1 + floor(position / original length)); null: no query scale.",
    ]


@dataclass(frozen=True)
class VisionConfig:
    """Pixtral vision tower and Mistral3 projector, under the names of a Mistral3 wrapper's `config.json`."""

    hidden_size: Annotated[Count, "Width of the tower. Divisible by 2 x num_attention_heads."]
    intermediate_size: Annotated[Count, "Width of the tower's gated MLP."]
    num_hidden_layers: Annotated[Count, "Number of the tower's layers."]
    num_attention_heads: Annotated[
        Count, "Heads of the tower. The width of one, hidden_size / num_attention_heads, is divisible by 4."
    ]
    patch_size: Annotated[Count, "Edge of a patch in pixels."]
    image_size: Annotated[
        Count, "Longest edge of a picture in pixels, to which larger ones are scaled down. At least a merged patch."
    ]
    spatial_merge_size: Annotated[
        Count, "Edge of the square of patches that the projector merges into one [IMG] token."
    ]
    hidden_act: Annotated[str, "Activation of the tower's MLP, a name of transformers, such as silu or gelu."]
    rope_theta: Annotated[Positive, "Base of the tower's rotary frequencies, the same for rows and columns."]
    projector_hidden_act: Annotated[str, "Activation between the projector's two linear layers."]
    multimodal_projector_bias: Annotated[bool, "Whether the projector's two linear layers have biases."]
    image_token_id: Annotated[
        CountOrZero, "The token [IMG], whose embedding is a feature of a picture. Below vocab_size, as the next two."
    ]
    image_break_token_id: Annotated[CountOrZero, "The token [IMG_BREAK], which ends a row of [IMG]."]
    image_end_token_id: Annotated[CountOrZero, "The token [IMG_END], which ends a picture."]


@dataclass(frozen=True)
class ModelConfig:
    """A Ministral3 text decoder, under the names of its `config.json` (docs/method.md, "Model shapes")."""

    name: Annotated[str, "Name of the shape in logs and plans."]
    hidden_size: Annotated[Count, "Width of the residual stream."]
    intermediate_size: Annotated[Count, "Width of the gated MLP. Divisible by parallel.tensor."]
    num_hidden_layers: Annotated[Count, "Number of layers. Divisible by parallel.pipeline x parallel.virtual_pipeline."]
    num_attention_heads: Annotated[
        Count, "Number of query heads. Divisible by num_key_value_heads and by parallel.tensor."
    ]
    num_key_value_heads: Annotated[
        Count, "Number of key and value heads (grouped-query attention). Divisible by parallel.tensor."
    ]
    head_dim: Annotated[
        Count,
        "Width of one head. Even, since rotary embedding rotates pairs. Need not be hidden_size / num_attention_heads.",
    ]
    vocab_size: Annotated[
        Count,
        "Number of token ids of the embedding and of the head, which is always untied. At least the tokenizer's.",
    ]
    max_position_embeddings: Annotated[Count, "Longest sequence that positions are meant for, in tokens."]
    rms_norm_eps: Annotated[Positive, "Added to the mean square in RMSNorm."]
    initializer_range: Annotated[Positive, "Standard deviation of random starting weights."]
    mask_token_id: Annotated[
        int,
        "The mask token: an existing reserved id of the tokenizer, below vocab_size, which must not occur in the "
        "data and is none of the next three.",
    ]
    bos_token_id: Annotated[int, "The token at the beginning of a document. Below vocab_size."]
    eos_token_id: Annotated[int, "The token at the end of a document. Below vocab_size."]
    pad_token_id: Annotated[int, "The token that pads batches of unequal length. Below vocab_size."]
    rope_parameters: RopeParameters
    vision: Annotated[
        VisionConfig | None,
        "The vision tower and projector of a vision-language model, on the first pipeline stage; null: text alone.",
    ] = None
