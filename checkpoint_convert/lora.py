"""A LoRA beside weights, in a checkpoint whose stage trains one or in an export: added to them as they are read, or
exported beside them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from checkpoint_convert.mapping import Naming
from nld_train.config.schema import ModelConfig
from nld_train.model.adapter_files import (
    CONFIG_FILE,
    LORA_DIRECTORY,
    MODEL_PREFIX,
    read_shape,
    read_tensors,
    tensor_names,
    weight_tensor_names,
    write_adapter,
)


class SavedLora:
    """A LoRA in files.

    Args:
        directory: with its two files.
        model: shapes of the model that it is for.
        prefix: of the names of its tensors after PEFT's; None for that of checkpoints.

    Raises:
        UserError: its files are damaged, or it has NaN or infinity.
    """

    def __init__(self, directory: Path, model: ModelConfig, prefix: str = MODEL_PREFIX) -> None:
        self.shape = read_shape(directory, model, drafter=False, model_prefix=prefix)
        self.layers = model.num_hidden_layers
        self.tensors = read_tensors(directory)
        self._prefix = prefix

    def added(self, name: str, start: int, rows: Tensor) -> Tensor:
        """Rows of a tensor, with the change added in float32.

        Args:
            name: of the tensor, under the names of `mapping`.
            start: index of the first row.
            rows: of the tensor, which are not changed.
        """
        down, up = (self.tensors.get(found) for found in weight_tensor_names(name, self._prefix))
        if down is None or up is None:
            return rows
        change = self.shape.scale * (up[start : start + len(rows)].float() @ down.float())
        return (rows.float() + change).to(rows.dtype)

    def write(self, directory: Path, naming: Naming) -> None:
        """Writes it beside an export's weights, in PEFT's layout, under the names of the export's architecture.

        With `config.json` in the same directory, `from_pretrained` of `transformers` loads weights and LoRA.
        """
        renamed = {
            new: self.tensors[old]
            for layer in range(self.layers)
            for target in self.shape.targets
            for old, new in zip(
                tensor_names(layer, target, self._prefix), tensor_names(layer, target, naming.prefix), strict=True
            )
        }
        write_adapter(directory, self.shape, renamed)


def saved_lora(directory: Path, model: ModelConfig) -> SavedLora | None:
    """The LoRA of a checkpoint; None where it has none."""
    folder = directory / LORA_DIRECTORY
    return SavedLora(folder, model) if folder.is_dir() else None


def exported_lora(directory: Path, model: ModelConfig, naming: Naming) -> SavedLora | None:
    """The LoRA beside the weights of a Hugging Face directory, which `transformers` adds to them; None without one.

    Exports of earlier versions have it in `lora/`.

    Raises:
        UserError: it is damaged, of another kind, or for another model.
    """
    for folder in (directory, directory / LORA_DIRECTORY):
        if (folder / CONFIG_FILE).is_file():
            return SavedLora(folder, model, naming.prefix)
    return None
