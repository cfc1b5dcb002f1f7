"""The descriptions in a checkpoint: its model, settings and progress; imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nld_train.config.saved import read_saved_config
from nld_train.config.schema import Config
from nld_train.errors import UserError
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
        OSError, ValueError, KeyError, TypeError: the file is missing or damaged.
    """
    saved = json.loads((directory / PROGRESS_FILE).read_text())
    return Progress(**{field.name: saved[field.name] for field in fields(Progress)})


def saved_model(directory: Path) -> dict[str, Any]:
    """The model's shapes saved in a checkpoint, as in `config.ModelConfig`."""
    shapes: dict[str, Any] = json.loads((directory / MODEL_FILE).read_text())
    return shapes


def saved_config(directory: Path, current: Config) -> Config:
    """The settings saved in a checkpoint, which another version may have written.

    Args:
        directory: of the checkpoint.
        current: the settings of this run; they give the values of keys that the writer did not know.

    Raises:
        UserError: they cannot be read.
    """
    path = directory / CONFIG_FILE
    try:
        return read_saved_config(path.read_text(), current)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the checkpoint is incomplete") from error
    except UserError as error:
        raise UserError(f"{path}: {error}; use the version that wrote it") from error
