"""The LoRA of a checkpoint whose stage trains one: added to the weights that are read, or exported beside them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from checkpoint_convert.mapping import Naming
from nld_train.config.schema import ModelConfig
from nld_train.model.adapter_files import (
    LORA_DIRECTORY,
    read_shape,
    read_tensors,
    tensor_names,
    weight_tensor_names,
    write_adapter,
)


class SavedLora:
    """A LoRA in a checkpoint.

    Args:
        directory: the checkpoint.
        model: its shapes.

    Raises:
        UserError: its files are damaged, or it has NaN or infinity.
    """

    def __init__(self, directory: Path, model: ModelConfig) -> None:
        self.shape = read_shape(directory / LORA_DIRECTORY, model, drafter=False)
        self.layers = model.num_hidden_layers
        self.tensors = read_tensors(directory / LORA_DIRECTORY)

    def added(self, name: str, start: int, rows: Tensor) -> Tensor:
        """Rows of a tensor, with the change added in float32.

        Args:
            name: of the tensor, under the names of `mapping`.
            start: index of the first row.
            rows: of the tensor, which are not changed.
        """
        down, up = (self.tensors.get(found) for found in weight_tensor_names(name))
        if down is None or up is None:
            return rows
        change = self.shape.scale * (up[start : start + len(rows)].float() @ down.float())
        return (rows.float() + change).to(rows.dtype)

    def write(self, directory: Path, naming: Naming) -> None:
        """Writes it into `lora/` of an export, in PEFT's layout, under the names of the export's architecture."""
        renamed = {
            new: self.tensors[old]
            for layer in range(self.layers)
            for target in self.shape.targets
            for old, new in zip(tensor_names(layer, target), tensor_names(layer, target, naming.prefix), strict=True)
        }
        write_adapter(directory / LORA_DIRECTORY, self.shape, renamed)


def saved_lora(directory: Path, model: ModelConfig) -> SavedLora | None:
    """The LoRA of a checkpoint; None where it has none."""
    return SavedLora(directory, model) if (directory / LORA_DIRECTORY).is_dir() else None
