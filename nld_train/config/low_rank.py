"""The linear layers that a low-rank change can be added to, and how many numbers it has."""

from __future__ import annotations

from collections.abc import Iterator

from nld_train.config.schema import LORA_TARGETS, LoraConfig, ModelConfig

# Tensor-parallel ranks split the weights of these along their inputs, those of the others along their outputs.
SPLIT_INPUTS = ("o_proj", "down_proj")


def linear_shapes(hidden: int, queries: int, keys: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer of a decoder layer, under its Hugging Face name.

    Args:
        hidden: size of the hidden states.
        queries: query heads times their size.
        keys: key-value heads times their size.
        intermediate: size of the MLP.
    """
    attention = ((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden))
    mlp = ((hidden, intermediate), (hidden, intermediate), (intermediate, hidden))
    return dict(zip(LORA_TARGETS, attention + mlp, strict=True))


def target_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """`linear_shapes` of a model."""
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    return linear_shapes(model.hidden_size, queries, keys, model.intermediate_size)


def layer_changes(model: ModelConfig, lora: LoraConfig, tensor: int) -> Iterator[tuple[int, int]]:
    """Elements of A and of B of each target in a layer, on one of `tensor` tensor-parallel ranks."""
    for target, (inputs, outputs) in target_shapes(model).items():
        if target in lora.targets:
            split = target in SPLIT_INPUTS
            yield lora.rank * inputs // (tensor if split else 1), lora.rank * outputs // (1 if split else tensor)


def lora_layer_parameters(model: ModelConfig, lora: LoraConfig, tensor: int = 1) -> int:
    """Parameters of a LoRA in a layer, on one of `tensor` tensor-parallel ranks."""
    return sum(down + up for down, up in layer_changes(model, lora, tensor))


def lora_parameters(model: ModelConfig, lora: LoraConfig) -> int:
    """Parameters of a LoRA in the whole model: all that is trained in its stage."""
    return model.num_hidden_layers * lora_layer_parameters(model, lora)
