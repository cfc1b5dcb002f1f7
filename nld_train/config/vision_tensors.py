"""Names and shapes of the tensors of a vision tower and its projector, which transformers' modules have."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from nld_train.config.image_tokens import patch_count
from nld_train.config.schema import ModelConfig, StageConfig, TrainedWeights, VisionConfig

# Beginnings of their names.
TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."
_DIVISION = f"{TOWER}patch_conv.weight"
# The module of both in Megatron's model, where names begin with it.
MODULE = "vision."
# As `model.vision.pictures` has it, which is part of exports and imports nothing of ours.
CHANNELS = 3
# A multiply and an add; forward, and backward for inputs and weights.
_OPERATIONS, _TRAINED = 2, 3


def is_vision_key(key: str) -> bool:
    """Whether a tensor of Megatron's model is of the vision tower or its projector."""
    return key.startswith(MODULE)


def vision_tensors(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each, in the order of the modules; none of a model without vision."""
    if model.vision is not None:
        yield from _tower(model.vision)
        yield from _projector(model.vision, model.hidden_size)


def _tower(vision: VisionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    yield _DIVISION, (width, CHANNELS, patch, patch)
    yield f"{TOWER}ln_pre.weight", (width,)
    for layer in range(vision.num_hidden_layers):
        prefix = f"{TOWER}transformer.layers.{layer}."
        yield f"{prefix}attention_norm.weight", (width,)
        yield f"{prefix}feed_forward.gate_proj.weight", (inner, width)
        yield f"{prefix}feed_forward.up_proj.weight", (inner, width)
        yield f"{prefix}feed_forward.down_proj.weight", (width, inner)
        for name in "kvqo":
            yield f"{prefix}attention.{name}_proj.weight", (width, width)
        yield f"{prefix}ffn_norm.weight", (width,)


def _projector(vision: VisionConfig, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = vision.hidden_size
    yield f"{PROJECTOR}norm.weight", (width,)
    yield f"{PROJECTOR}patch_merger.merging_layer.weight", (width, width * vision.spatial_merge_size**2)
    for name, columns in (("linear_1", width), ("linear_2", hidden)):
        yield f"{PROJECTOR}{name}.weight", (hidden, columns)
        if vision.multimodal_projector_bias:
            yield f"{PROJECTOR}{name}.bias", (hidden,)


def vision_parameters(model: ModelConfig) -> int:
    """Parameters of tower and projector; 0 without vision."""
    return sum(prod(shape) for _, shape in vision_tensors(model))


def trained_weights(stage: StageConfig) -> TrainedWeights:
    """Which of text model, tower and projector a stage trains; `text` where it trains a LoRA or an adapter."""
    return stage.trained_weights if stage.lora is None and stage.adapter is None else "text"


def sample_patches(vision: VisionConfig, tokens: int) -> int:
    """Patches of the largest picture, or those of as many `[IMG]` tokens as a sample has.

    What samples hold is known from their data alone: this is an estimate, of one picture in each.

    Args:
        vision: the tower's shape.
        tokens: of a sample.
    """
    step = vision.patch_size * vision.spatial_merge_size
    edge = vision.image_size // step * step
    return min(patch_count(vision, (edge, edge)), tokens * vision.spatial_merge_size**2)


class PictureProducts(NamedTuple):
    """Multiplications of a forward pass of one picture.

    Attributes:
        patches: of its division into patches.
        layers: of the tower's layers.
        projector: of the projector.
    """

    patches: int
    layers: int
    projector: int


def picture_products(model: ModelConfig, tokens: int) -> PictureProducts:
    """Those of a picture of `sample_patches`; zeros without a tower."""
    vision = model.vision
    if vision is None:
        return PictureProducts(0, 0, 0)
    patches = sample_patches(vision, tokens)
    matrices = {name: prod(shape) for name, shape in vision_tensors(model) if len(shape) > 1}
    division = matrices.pop(_DIVISION)
    # A score and a part of the output for each pair of patches.
    pairs = 2 * patches**2 * vision.hidden_size * vision.num_hidden_layers
    layers = patches * sum(size for name, size in matrices.items() if name.startswith(TOWER)) + pairs
    merged = patches // vision.spatial_merge_size**2
    projector = merged * sum(size for name, size in matrices.items() if name.startswith(PROJECTOR))
    return PictureProducts(patches * division, layers, projector)


def picture_flops(model: ModelConfig, stage: StageConfig, tokens: int) -> float:
    """Operations of tower and projector for a picture of `sample_patches`, forward and backward.

    Args:
        model: of the run.
        stage: which of both are trained.
        tokens: of a sample.
    """
    products, trained = picture_products(model, tokens), trained_weights(stage)
    tower = (products.patches + products.layers) * (_TRAINED if trained == "all" else 1)
    return float(_OPERATIONS * (tower + products.projector * (1 if trained == "text" else _TRAINED)))
