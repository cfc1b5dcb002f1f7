"""Activation memory of vision tower and projector, which are on the first pipeline stage.

Both are modules of transformers, replicated over tensor-parallel ranks: no kernel is fused, on CUDA either. A sample
has one picture of `config.vision_tensors.sample_patches`, as where operations are counted.
"""

from __future__ import annotations

from nld_train.config.image_tokens import PATCHES_TOGETHER
from nld_train.config.schema import Config, TrainedWeights, VisionConfig
from nld_train.config.vision_tensors import CHANNELS, sample_patches
from nld_train.planner.buffers import bytes_per_number

_FLOAT32 = 4
# Rows of a mask begin at a multiple of so many numbers in torch's kernels for CUDA; others are copied.
_ALIGNED = 8


def micro_batches_with_pictures(config: Config, micro_batches: int) -> int:
    """Largest number of micro-batches on the first pipeline rank whose pictures wait for their backward pass.

    With several chunks of layers, those of two groups of as many micro-batches as there are pipeline ranks: a group is
    through its first chunk twice before the first group is through its last backward pass.
    """
    groups = 2 if (config.parallel.virtual_pipeline or 1) > 1 else 1
    return min(groups * config.parallel.pipeline, micro_batches)


def chunks_of_patches(config: Config) -> list[int]:
    """Patches of the pictures of a micro-batch that pass through the tower together, time by time; empty without it."""
    vision = config.model.vision
    if vision is None:
        return []
    patches = sample_patches(vision, config.batch.sequence_length)
    together = max(1, PATCHES_TOGETHER // patches)
    whole, rest = divmod(config.batch.micro_size, together)
    return [together * patches] * whole + [rest * patches] * (rest > 0)


def pictures_bytes(config: Config, trained: TrainedWeights) -> int:
    """Bytes that tower and projector store of a micro-batch for their backward pass: nothing where they are frozen.

    With `execution.recompute=full` a layer of the tower stores its input alone.
    """
    if config.model.vision is None or trained == "text":
        return 0
    chunks = chunks_of_patches(config)
    tower = sum(_tower_bytes(config, config.model.vision, patches) for patches in chunks) if trained == "all" else 0
    projector = sum(_projector_bytes(config, config.model.vision, patches, trained == "all") for patches in chunks)
    return tower + projector


def pictures_working_bytes(config: Config, trained: TrainedWeights) -> int:
    """Temporary tensors of the largest chunk of patches, while a layer of the tower is computed.

    In the backward pass gradients of the MLP's inner width and of the layer's input; in the forward pass of a frozen
    tower as many activations, angles and mask. With full recomputation also what the layer stores.
    """
    vision = config.model.vision
    if vision is None:
        return 0
    patches, number = max(chunks_of_patches(config)), bytes_per_number(config)
    working = number * patches * (3 * vision.intermediate_size + 2 * vision.hidden_size)
    if trained != "all":
        return working + _shared_bytes(config, vision, patches) + _copied_mask_bytes(config, patches)
    full = config.execution.recompute == "full"
    return working + (tower_layer_bytes(config, vision, patches) if full else 0)


def _tower_bytes(config: Config, vision: VisionConfig, patches: int) -> int:
    number = bytes_per_number(config)
    pixels = number * patches * CHANNELS * vision.patch_size**2
    stored = number * patches * vision.hidden_size
    layer = stored if config.execution.recompute == "full" else tower_layer_bytes(config, vision, patches)
    norm = _norm_bytes(config, vision, patches)
    return pixels + norm + _shared_bytes(config, vision, patches) + vision.num_hidden_layers * layer


def tower_layer_bytes(config: Config, vision: VisionConfig, patches: int) -> int:
    """Bytes that a layer of the tower stores of a chunk of patches.

    Stored are what both norms store, the inputs of the products after them, query and key after rotation, value,
    attention's output and its log-sum-exp in float32, the gate before and after its activation, up, and the product of
    both.
    """
    width = 6 * vision.hidden_size + 4 * vision.intermediate_size
    attention = _FLOAT32 * patches * vision.num_attention_heads + _copied_mask_bytes(config, patches)
    norms = 2 * _norm_bytes(config, vision, patches)
    return norms + bytes_per_number(config) * patches * width + attention


def _norm_bytes(config: Config, vision: VisionConfig, patches: int) -> int:
    """The input in float32, its scale, and the normalised input."""
    return patches * ((_FLOAT32 + bytes_per_number(config)) * vision.hidden_size + _FLOAT32)


def _shared_bytes(config: Config, vision: VisionConfig, patches: int) -> int:
    """What all layers have in common: the mask, a number for each pair of patches, and cosines and sines."""
    angles = 2 * vision.hidden_size // vision.num_attention_heads
    return bytes_per_number(config) * patches * (patches + angles)


def _copied_mask_bytes(config: Config, patches: int) -> int:
    """The mask that attention on CUDA copies in every layer, with longer rows, where its own are not aligned."""
    if config.execution.device == "cpu" or patches % _ALIGNED == 0:
        return 0
    return bytes_per_number(config) * patches * (patches + _ALIGNED - patches % _ALIGNED)


def _projector_bytes(config: Config, vision: VisionConfig, patches: int, whole: bool) -> int:
    """Stored of the projector: inputs of its products and of its activation, and what the norm stores.

    Args:
        config: the run.
        vision: the tower's shape.
        patches: of a chunk.
        whole: whether the tower is trained too; else the norm's input has no gradient.
    """
    number, merged = bytes_per_number(config), patches // vision.spatial_merge_size**2
    norm = _norm_bytes(config, vision, patches) if whole else number * patches * vision.hidden_size
    inputs = patches * vision.hidden_size + merged * (vision.hidden_size + 2 * config.model.hidden_size)
    return norm + number * inputs
