"""The lengths of the noisy streams of a run: fitted to its data once, and kept where it continues. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nld_train.config.schema import Config
from nld_train.config.validate_layout import validate_layout
from nld_train.data.sample_sets import resolve_noisy_lengths
from nld_train.errors import UserError
from nld_train.training.checkpoint.contents import read_progress, saved_config
from nld_train.training.checkpoint.paths import checkpoints_directory, written_checkpoints


def noisy_lengths_of_run(config: Config, world_size: int) -> Config:
    """The settings with a number for each `stages.NAME.noisy_length: auto`.

    In a stage that `run.dir` has begun it is the number that the stage began with: the layout, to which a new number
    would be fitted, may have changed, and samples must not. In other stages it is that of `resolve_noisy_lengths`.

    Args:
        config: the run.
        world_size: number of processes, whose layout the lengths have to fit.

    Raises:
        UserError: as `resolve_noisy_lengths`.
    """
    begun = _lengths_of_begun_stages(config)
    if not begun:
        return resolve_noisy_lengths(config, world_size)
    stages = {name: replace(config.stages[name], noisy_length=length) for name, length in begun.items()}
    kept = replace(config, stages={**config.stages, **stages})
    try:
        validate_layout(kept, world_size)
    except UserError as error:
        raise UserError(
            f"{error}; {config.run.dir} has begun with this length: continue it in another layout"
        ) from error
    return resolve_noisy_lengths(kept, world_size)


def _lengths_of_begun_stages(config: Config) -> dict[str, int]:
    """The lengths in the newest checkpoint of a run that can be read, of begun stages that are set to `auto`."""
    automatic = [name for name in config.run.stages if config.stages[name].noisy_length == "auto"]
    try:
        written = written_checkpoints(checkpoints_directory(Path(config.run.dir))) if automatic else []
    except OSError:  # which is reported where the checkpoint to continue from is looked for
        return {}
    for directory in written:
        try:
            saved, stage = saved_config(directory, config), read_progress(directory).stage
        except UserError:  # damaged, and reported there as well
            continue
        stages = saved.run.stages
        begun = stages[: stages.index(stage) + 1] if stage in stages else ()
        lengths = {name: saved.stages[name].noisy_length for name in automatic if name in begun}
        return {name: length for name, length in lengths.items() if length != "auto"}
    return {}
