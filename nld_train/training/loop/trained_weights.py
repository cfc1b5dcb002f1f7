"""Which weights of the model a stage trains: all of them, or those of a new adapter alone.

Only weights that require a gradient have a gradient buffer and optimizer state.
"""

from __future__ import annotations

from typing import Any

from nld_train.config.schema import TrainedWeights
from nld_train.config.vision_tensors import MODULE, PROJECTOR, is_vision_key
from nld_train.model.adapter_files import AdapterShape
from nld_train.model.adapters import LORA, Role, adapter_shape, attach_adapter, initialize_adapter, merge_lora
from nld_train.model.ministral3 import Ministral3Model
from nld_train.training.loop.optimizer import release_wrappers, unwrap


def train_weights(model: list[Any], trained: TrainedWeights = "all") -> list[Any]:
    """The model with its own weights trainable, all or some; a LoRA of the stage before is added to them.

    Args:
        model: this rank's chunks, wrapped or not; they are returned as they are if there is nothing to change.
        trained: `text`: not the vision tower and the projector; `projector`: the projector alone.
    """
    own = [unwrap(chunk) for chunk in model]
    wanted = {name: is_trained(name, trained) for chunk in own for name, _ in chunk.named_parameters()}
    as_wanted = all(weight.requires_grad == wanted[name] for chunk in own for name, weight in chunk.named_parameters())
    if as_wanted and adapter_shape(own, LORA) is None:
        return model
    chunks = _release(model)
    for chunk in chunks:
        for name, weight in chunk.named_parameters():
            weight.requires_grad_(is_trained(name, trained))
    return chunks


def is_trained(name: str, trained: TrainedWeights) -> bool:
    """Whether a stage trains the weight of this name of Megatron's model."""
    if trained == "all":
        return True
    return name.startswith(MODULE + PROJECTOR) if trained == "projector" else not is_vision_key(name)


def train_adapter(model: list[Any], role: Role, shape: AdapterShape, seed: int) -> list[Ministral3Model]:
    """The model with a new adapter, which alone is trainable; a LoRA of the stage before is added to the weights.

    Args:
        model: this rank's chunks, wrapped or not.
        role: of the adapter.
        shape: of the adapter.
        seed: of its initial weights.

    Returns:
        The chunks without wrappers.
    """
    chunks = _release(model)
    for chunk in chunks:
        chunk.requires_grad_(False)
    attach_adapter(chunks, role, shape)
    initialize_adapter(chunks, role, seed)
    return chunks


def _release(model: list[Any]) -> list[Ministral3Model]:
    chunks = release_wrappers(model)
    merge_lora(chunks)
    return chunks
