"""The descriptions in a checkpoint: its model, settings and progress; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.config.saved import read_saved_config
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.outside_json import as_record, parse_object, read_bytes, read_object
from nld_train.training.checkpoint.paths import CONFIG_FILE, MODEL_FILE, PROGRESS_FILE


@dataclass(frozen=True)
class Progress:
    """Position of a run: its step and stage.

    Attributes:
        step: optimizer steps made over the whole run.
        stage: name of the stage that made the last one.
        stage_step: steps made in that stage.
        stage_steps: steps that the stage has in all.
        data: per stage of the run, the fingerprint of its data and order.
    """

    step: int
    stage: str
    stage_step: int
    stage_steps: int
    data: dict[str, str]

    @property
    def ends_stage(self) -> bool:
        """Whether the stage is complete."""
        return self.stage_step == self.stage_steps


def read_progress(directory: Path) -> Progress:
    """The progress of the run when it wrote a checkpoint; keys that another version added are left out.

    Raises:
        UserError: the file is missing or damaged.
    """
    settings = parse_object(read_bytes(directory / PROGRESS_FILE, PROGRESS_FILE), PROGRESS_FILE)
    return as_record(Progress, settings, PROGRESS_FILE)


def find_damaged_progress(directory: Path) -> str | None:
    """The damage of a checkpoint's `progress.json` in a few words that name it, or None."""
    try:
        read_progress(directory)
    except UserError as error:
        return str(error)
    return None


def saved_model(directory: Path) -> dict[str, Any]:
    """The model's shapes saved in a checkpoint, as in `config.ModelConfig`."""
    return read_object(directory / MODEL_FILE)


def saved_config(directory: Path, current: Config) -> Config:
    """The settings saved in a checkpoint, which another version may have written.

    Args:
        directory: of the checkpoint.
        current: the settings of this run; they give the values of keys that the writer did not know.

    Raises:
        UserError: they cannot be read.
    """
    path = directory / CONFIG_FILE
    content = read_bytes(path)
    try:
        return read_saved_config(content, current)
    except UserError as error:
        raise UserError(f"{path}: {error}; use the version that wrote it") from error
