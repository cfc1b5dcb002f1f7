"""`transformers`' Ministral3 as the oracle: tiny models, and their weights in Megatron's layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import naive
import torch
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM

from nld_train.config.compose import compose_config
from nld_train.config.schema import Config, ModelConfig
from nld_train.masking.layout import StreamLayout
from nld_train.model.build import build_model, transformer_config
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.streams import StreamContext, register

# Shapes that no released checkpoint has, and none of which follows from another.
TINY_SHAPE = {
    "model.hidden_size": 40,
    "model.intermediate_size": 56,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 6,
    "model.num_key_value_heads": 2,
    "model.head_dim": 24,
    "model.vocab_size": 67,
    "model.max_position_embeddings": 256,
}
# The released yarn with a short original length, so that short sequences go beyond it.
YARN_OF_16 = {
    "model.rope_parameters.rope_type": "yarn",
    "model.rope_parameters.rope_theta": 1e4,
    "model.rope_parameters.factor": 16.0,
    "model.rope_parameters.original_max_position_embeddings": 16,
    "model.rope_parameters.beta_fast": 32.0,
    "model.rope_parameters.beta_slow": 1.0,
    "model.rope_parameters.mscale": 1.0,
    "model.rope_parameters.mscale_all_dim": 1.0,
    "model.rope_parameters.llama_4_scaling_beta": 0.1,
}


def tiny_config(**changes: object) -> Config:
    """A run of a tiny Ministral3; keyword names have `__` for each dot: `model__head_dim=32`."""
    values = {**TINY_SHAPE, **YARN_OF_16, "execution.device": "cpu"}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return compose_config([f"{key}={'null' if value is None else value}" for key, value in values.items()])


def hugging_face_config(model: ModelConfig) -> Ministral3Config:
    """The same model as `transformers` describes it; eager attention, which takes any mask."""
    names = {field.name for field in dataclasses.fields(ModelConfig)} - {
        "name",
        "mask_token_id",
        "rope_parameters",
        "vision",
    }
    rope = {key: value for key, value in dataclasses.asdict(model.rope_parameters).items() if value is not None}
    # Without a query scale its arguments still have to be numbers.
    rope = {"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": 1, **rope}
    return Ministral3Config(
        **{name: getattr(model, name) for name in names},
        rope_parameters=rope,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )


def hugging_face_model(model: ModelConfig, seed: int = 0) -> Ministral3ForCausalLM:
    """Random weights, large enough that attention is far from uniform and norms do something."""
    oracle = Ministral3ForCausalLM(hugging_face_config(model)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in oracle.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(1 + 0.3 * drawn)
            else:
                width = 1 if "embed" in name else weight.shape[1]
                weight.copy_(1.2 * drawn * width**-0.5)
    return oracle


def in_megatron_layout(model: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under Hugging Face names, in Megatron's layout: query, key and value group by group; gate over up."""
    found = {
        "embedding.word_embeddings.weight": tensors["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": tensors["model.norm.weight"],
        "output_layer.weight": tensors["lm_head.weight"],
    }
    for layer in range(model.num_hidden_layers):
        theirs, ours = f"model.layers.{layer}", f"decoder.layers.{layer}"
        query, key, value = (tensors[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv")
        per_group = model.num_attention_heads // model.num_key_value_heads * model.head_dim
        pieces = []
        for group in range(model.num_key_value_heads):
            pieces.append(query[group * per_group : (group + 1) * per_group])
            pieces += [part[group * model.head_dim : (group + 1) * model.head_dim] for part in (key, value)]
        found |= {
            f"{ours}.self_attention.linear_qkv.weight": torch.cat(pieces),
            f"{ours}.self_attention.linear_proj.weight": tensors[f"{theirs}.self_attn.o_proj.weight"],
            f"{ours}.mlp.linear_fc1.weight": torch.cat(
                [tensors[f"{theirs}.mlp.gate_proj.weight"], tensors[f"{theirs}.mlp.up_proj.weight"]]
            ),
            f"{ours}.mlp.linear_fc2.weight": tensors[f"{theirs}.mlp.down_proj.weight"],
            f"{ours}.input_layernorm.weight": tensors[f"{theirs}.input_layernorm.weight"],
            f"{ours}.pre_mlp_layernorm.weight": tensors[f"{theirs}.post_attention_layernorm.weight"],
        }
    return found


def build(config: Config) -> Ministral3Model:
    """The model of a single process, its weights not filled."""
    device = torch.device("cpu")
    (model,) = build_model(config, transformer_config(config, device), device)
    return model


def pair(config: Config, seed: int = 0) -> tuple[Ministral3Model, Ministral3ForCausalLM]:
    """The model under test and the oracle, with the same weights; every parameter is copied."""
    ours, theirs = build(config), hugging_face_model(config.model, seed)
    copy_weights(ours, in_megatron_layout(config.model, dict(theirs.named_parameters())))
    return ours, theirs


@torch.no_grad()
def copy_weights(model: Ministral3Model, weights: dict[str, Tensor]) -> None:
    """Fills every parameter of a model; none is left over on either side."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    for name, parameter in parameters.items():
        assert parameter.shape == weights[name].shape, name
        parameter.copy_(weights[name])


def logits(config: Config, model: Ministral3Model, tokens: Tensor, documents: Tensor, two_streams: bool) -> Tensor:
    """All logits `[b, S, vocab]` of the model under test for stacked streams `tokens` `[b, S]`."""
    layout = StreamLayout.of(documents, config.diffusion.block_size, two_streams)
    handle = register(StreamContext.of(layout, RotaryEmbedding(config.model, torch.device("cpu")), torch.float32))
    batch, total = tokens.shape
    return model(tokens, handle).view(total, batch, -1).transpose(0, 1)


def oracle_logits(
    oracle: Ministral3ForCausalLM,
    tokens: Tensor,
    documents: Sequence[Sequence[int]],
    block_size: int,
    two_streams: bool,
    positions: Callable[[Sequence[int], int], int] = naive.position_in_document,
) -> Tensor:
    """The same from `transformers`, with a mask and positions that come from plain loops."""
    masks = [naive.visibility(row, block_size, two_streams) for row in documents]
    streams = 2 if two_streams else 1
    position_ids = [[positions(row, index) for index in range(len(row))] * streams for row in documents]
    return masked_logits(oracle, tokens, masks, position_ids)


def masked_logits(
    oracle: Ministral3ForCausalLM,
    tokens: Tensor,
    masks: Sequence[Sequence[Sequence[bool]]],
    position_ids: Sequence[Sequence[int]],
) -> Tensor:
    """All logits of `transformers` `[b, S, vocab]` under any visibility `[b, S, S]`, queries first."""
    visible = torch.tensor(masks)
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min).unsqueeze(1)
    positions = torch.tensor(position_ids)
    result: Tensor = oracle(tokens, attention_mask=additive, position_ids=positions, use_cache=False).logits
    return result
