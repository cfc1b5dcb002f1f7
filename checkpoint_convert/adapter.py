"""The drafter adapter that lies beside a checkpoint: checked against the model, and taken along."""

from __future__ import annotations

import shutil
from pathlib import Path

from nld_train.config.schema import ModelConfig
from nld_train.errors import UserError
from nld_train.model.adapter_files import CONFIG_FILE, DIRECTORY, TENSOR_FILE, find_adapter, read_shape


def adapter_beside(directory: Path, model: ModelConfig) -> Path | None:
    """The adapter in `linear_spec_lora/` of a checkpoint or of a Hugging Face directory; None where there is none.

    Raises:
        UserError: it is damaged, or of another model or rank than it says.
    """
    if not (directory / DIRECTORY).is_dir():
        return None
    return require_adapter(directory / DIRECTORY, model)


def require_adapter(path: Path, model: ModelConfig) -> Path:
    """The adapter that a path means: its own directory, or one with `linear_spec_lora/` in it.

    Raises:
        UserError: there is none, it is damaged, or of another model or rank than it says.
    """
    found = find_adapter(path)
    if found is None:
        raise UserError(f"{path}: holds no drafter adapter ({CONFIG_FILE} and {TENSOR_FILE})")
    read_shape(found, model)
    return found


def copy_adapter(adapter: Path, destination: Path) -> None:
    """Copies an adapter's two files, and nothing else, into `linear_spec_lora/` of a directory."""
    (destination / DIRECTORY).mkdir()
    for name in (CONFIG_FILE, TENSOR_FILE):
        shutil.copyfile(adapter / name, destination / DIRECTORY / name)
