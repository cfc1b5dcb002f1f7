"""The checkpoints of a run, read from its directory without torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nld_train.config.compose import default_config
from nld_train.config.saved import read_saved_config
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.outside_json import read_bytes
from nld_train.training.checkpoint.contents import Progress, read_progress
from nld_train.training.checkpoint.manifest import MANIFEST, find_damage
from nld_train.training.checkpoint.paths import (
    CONFIG_FILE,
    UNFINISHED,
    checkpoints_directory,
    step_of_name,
    unfinished_checkpoints,
    written_checkpoints,
)


@dataclass(frozen=True)
class CheckpointState:
    """One checkpoint.

    Attributes:
        path: of its directory.
        step: of the run.
        stage: that made it; `?` where that cannot be read.
        ends_stage: whether that stage is complete with it.
        written: when it was finished, in seconds since the epoch.
        damage: its damage in a few words, or None.
    """

    path: Path
    step: int
    stage: str
    ends_stage: bool
    written: float
    damage: str | None


def checkpoint_states(directory: Path, read_all: bool) -> list[CheckpointState]:
    """The newest checkpoint, and after damaged ones those before them up to the first sound one, the newest first.

    Args:
        directory: of the run.
        read_all: compare the checksums of all files, which reads them; otherwise only names and sizes.

    Raises:
        OSError: the directory of the checkpoints exists and cannot be listed.
    """
    states: list[CheckpointState] = []
    for path in written_checkpoints(checkpoints_directory(directory)):
        state = _state(path, read_all)
        if state is None:  # the retention rules have just deleted it
            continue
        states.append(state)
        if state.damage is None:
            break
    return states


def _state(path: Path, read_all: bool) -> CheckpointState | None:
    damage = find_damage(path, parts=1 if read_all else 0)
    progress = _progress(path)
    written = _time_written(path)
    if written is None:
        return None
    return CheckpointState(
        path=path,
        step=step_of_name(path.name) if progress is None else progress.step,
        stage="?" if progress is None else progress.stage,
        ends_stage=progress is not None and progress.ends_stage,
        written=written,
        damage=damage,
    )


def _time_written(path: Path) -> float | None:
    """When a checkpoint was finished; None where it is gone."""
    for file in (path / MANIFEST, path):
        with suppress(OSError):
            return file.stat().st_mtime
    return None


def _progress(path: Path) -> Progress | None:
    """How far the run was; None in a damaged checkpoint."""
    try:
        return read_progress(path)
    except UserError:
        return None


def settings_of(directory: Path, states: list[CheckpointState]) -> Config | None:
    """The settings of the last start; where an earlier version has not written them, those of the newest checkpoint."""
    for folder in (directory, *(state.path for state in states)):
        try:
            return read_saved_config(read_bytes(folder / CONFIG_FILE), default_config())
        except UserError:
            continue
    return None


def being_written(directory: Path) -> list[str]:
    """Names of the checkpoints that are not complete: being written, or interrupted by a kill."""
    return [path.name.removesuffix(UNFINISHED) for path in unfinished_checkpoints(checkpoints_directory(directory))]
