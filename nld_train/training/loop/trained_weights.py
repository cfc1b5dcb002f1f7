"""Which weights of the model a stage trains: all of them, or those of a new adapter alone.

Only weights that require a gradient have a gradient buffer and optimizer state.
"""

from __future__ import annotations

from typing import Any

from nld_train.model.adapter_files import AdapterShape
from nld_train.model.adapters import LORA, Role, adapter_shape, attach_adapter, initialize_adapter, merge_lora
from nld_train.model.ministral3 import Ministral3Model
from nld_train.training.loop.optimizer import release_wrappers, unwrap


def train_all_weights(model: list[Any]) -> list[Any]:
    """The model with all weights trainable; a LoRA of the stage before is added to them.

    Args:
        model: this rank's chunks, wrapped or not; they are returned as they are if there is nothing to change.
    """
    if adapter_shape([unwrap(chunk) for chunk in model], LORA) is None:
        return model
    chunks = _release(model)
    for chunk in chunks:
        chunk.requires_grad_(True)
    return chunks


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
