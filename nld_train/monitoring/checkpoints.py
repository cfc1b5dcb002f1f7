"""The checkpoints of a run, looked at from outside, without torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from nld_train.config.compose import compose_config
from nld_train.config.saved import read_saved_config
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.training.checkpoint.integrity import MANIFEST, find_damage

# So large a share of the files has no file: names and sizes are checked, and nothing is read.
_NO_CHECKSUMS = sys.maxsize


@dataclass(frozen=True)
class CheckpointState:
    """One checkpoint.

    Attributes:
        path: of its directory.
        step: of the run.
        stage: that made it.
        ends_stage: whether that stage is complete with it.
        written: when it was finished, in seconds since the epoch.
        damage: what is wrong with it, or None.
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
        read_all: compare the checksums of all files, which means to read them; otherwise names and sizes.
    """
    states: list[CheckpointState] = []
    names = sorted((directory / "checkpoints").glob("step_*"), reverse=True)
    for path in (path for path in names if not path.name.endswith(".tmp")):
        state = _state(path, read_all)
        if state is None:  # the retention rules have just taken it
            continue
        states.append(state)
        if state.damage is None:
            break
    return states


def _state(path: Path, read_all: bool) -> CheckpointState | None:
    damage = find_damage(path) if read_all else find_damage(path, share=_NO_CHECKSUMS)
    try:
        progress = json.loads((path / "progress.json").read_text())
        written = (path / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        if not path.exists():
            return None
        progress, written = {}, path.stat().st_mtime
    stage_step = progress.get("stage_step")
    return CheckpointState(
        path=path,
        step=progress.get("step", int(path.name.rpartition("_")[2])),
        stage=progress.get("stage", "?"),
        ends_stage=stage_step is not None and stage_step == progress.get("stage_steps"),
        written=written,
        damage=damage,
    )


def settings_of(states: list[CheckpointState]) -> Config | None:
    """The settings beside the newest checkpoint that has readable ones, whichever version wrote them."""
    for state in states:
        try:
            return read_saved_config((state.path / "config.yaml").read_text(), compose_config())
        except (OSError, UserError):
            continue
    return None


def being_written(directory: Path) -> list[str]:
    """Names of the checkpoints that are not complete: under way, or left behind by a kill."""
    return sorted(path.name.removesuffix(".tmp") for path in (directory / "checkpoints").glob("step_*.tmp"))
