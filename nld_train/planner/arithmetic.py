"""The arithmetic of a micro-batch on one process, at one utilisation whatever the sizes of the products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nld_train.config.counts import layer_matrix_parameters
from nld_train.config.low_rank import lora_layer_parameters
from nld_train.config.schema import Config, TrainedWeights
from nld_train.config.vision_tensors import picture_products
from nld_train.planner.activations import positions
from nld_train.planner.hardware import Hardware
from nld_train.planner.trained import Trained

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind

_OPERATIONS_PER_PRODUCT = 2
# A backward pass costs two forward passes.
BACKWARD = 2


def arithmetic_seconds(config: Config, kind: StageKind, hardware: Hardware, trained: Trained) -> float:
    """Seconds of one micro-batch on the slowest pipeline rank: the last has the head, the first the vision tower.

    Args:
        config: the run.
        kind: of the stage.
        hardware: figures of the machines.
        trained: what the stage trains.
    """
    layers, head = _layer_products(config, kind, trained), _head_products(config, kind, trained)
    pictures = _vision_products(config, trained.weights)
    ends = pictures + head if config.parallel.pipeline == 1 else max(pictures, head)
    operations = _OPERATIONS_PER_PRODUCT * (layers + ends)
    return operations / (hardware.peak_tflops * 1e12 * hardware.utilisation(kind))


def _vision_products(config: Config, trained: TrainedWeights) -> float:
    """Multiplications of tower and projector, which every tensor-parallel rank does for itself, as `_layer_products`.

    A frozen tower has a forward pass alone.
    """
    products = picture_products(config.model, config.batch.sequence_length)
    again = products.layers if trained == "all" and config.execution.recompute == "full" else 0
    tower = (products.patches + products.layers) * (1 + (BACKWARD if trained == "all" else 0)) + again
    projector = products.projector * (1 + (0 if trained == "text" else BACKWARD))
    return config.batch.micro_size * (tower + projector)


def _layer_products(config: Config, kind: StageKind, trained: Trained) -> float:
    """Multiplications of the layers of one process for one micro-batch, forward and backward, with recomputation.

    A product with frozen weights has a backward pass of one product.
    """
    model, parallel, batch = config.model, config.parallel, config.batch
    frozen = positions(config, kind) * layer_matrix_parameters(model) if trained.freezes_text else 0
    changes = 0 if trained.lora is None else lora_layer_parameters(model, trained.lora)
    body = positions(config, kind) * (layer_matrix_parameters(model) + changes)
    length = batch.sequence_length
    pairs = kind.visible_pairs(length, config.diffusion)
    # Context-parallel processes have equally many pairs each (`masking.context_parallel`).
    attention = batch.micro_size * pairs * 2 * model.num_attention_heads * model.head_dim / parallel.context
    forward = {"none": 0.0, "selective": attention, "full": body + attention}[config.execution.recompute]
    layers = model.num_hidden_layers / parallel.pipeline
    return layers * ((1 + BACKWARD) * (body + attention) - frozen + forward) / parallel.tensor


def _head_products(config: Config, kind: StageKind, trained: Trained) -> float:
    """The same for the head, frozen as the text model is; with more rows than a chunk its forward pass runs twice."""
    model, batch = config.model, config.batch
    samples = batch.micro_size / config.parallel.context
    rows = samples * kind.head_rows(batch.sequence_length, config.diffusion)
    passes = 1 + BACKWARD + (1 if rows > config.execution.head_chunk_rows else 0) - (1 if trained.freezes_text else 0)
    return passes * rows * model.vocab_size * model.hidden_size / config.parallel.tensor
