"""The checkpoint from which a run is resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nld_train.config.schema import Config
from nld_train.data.order import StageOrder
from nld_train.training.checkpoint.contents import Progress, read_progress, saved_config
from nld_train.training.checkpoint.fallback import newest_sound_checkpoint
from nld_train.training.checkpoint.paths import checkpoints_directory
from nld_train.training.checkpoint.resume import changed_settings, refuse_other_run


@dataclass(frozen=True)
class Resumed:
    """The checkpoint, how far it is, and the settings that have changed since."""

    directory: Path
    progress: Progress
    changed: list[str]


def find_resumed(config: Config, orders: dict[str, StageOrder]) -> Resumed | None:
    """The newest sound checkpoint of `run.dir`, checked against the settings; damaged ones are reported.

    Args:
        config: the settings.
        orders: the order of the data, by stage.

    Raises:
        UserError: the checkpoint is of another run.
    """
    directory = newest_sound_checkpoint(checkpoints_directory(Path(config.run.dir)))
    if directory is None:
        return None
    progress, saved = read_progress(directory), saved_config(directory, config)
    refuse_other_run(directory, saved, progress, config, orders)
    return Resumed(directory, progress, changed_settings(saved, progress, config))
