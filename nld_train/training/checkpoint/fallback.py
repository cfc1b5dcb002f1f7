"""Finds the checkpoint from which a run continues: the newest sound one. Skipped ones are listed on standard error."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch.distributed as dist

from nld_train.errors import UserError
from nld_train.printable import printable
from nld_train.training.checkpoint.collective_errors import RankFailedError, on_first_rank
from nld_train.training.checkpoint.contents import find_damaged_progress
from nld_train.training.checkpoint.manifest import find_damage
from nld_train.training.checkpoint.paths import (
    DanglingLatestError,
    latest_checkpoint,
    obstructed_checkpoints,
    step_of_name,
    unfinished_checkpoints,
    written_checkpoints,
)
from nld_train.training.checkpoint.retention import delete


def newest_sound_checkpoint(directory: Path) -> Path | None:
    """The checkpoint to continue from, the same on every rank; called by all of them together.

    What a killed run left half-written is deleted, so that its space is free before this start writes anything.

    Args:
        directory: `<run.dir>/checkpoints`.

    Returns:
        None where the run never completed a checkpoint: it starts at its first step.

    Raises:
        UserError: there are checkpoints, or were, and none is sound: to start again would drop all steps made so far
            and write over what may still be repaired. Or the directory cannot be listed, or something that is no
            checkpoint has the name of a later one.
    """
    try:
        # As rank 0 lists them: on a network disk other ranks may see others.
        written = on_first_rank(lambda: written_checkpoints(directory))
        found, damages = _newest_sound(written)
        latest = on_first_rank(lambda: _latest_problem(directory))
        if found is None and (damages or latest is not None):
            _refuse_lost_checkpoints(directory, damages or [str(latest)])
        _refuse_obstructions(on_first_rank(lambda: obstructed_checkpoints(directory)), found)
        on_first_rank(lambda: _delete_unfinished(directory))
    except RankFailedError as error:
        raise UserError(
            f"run.dir: {directory} cannot be read ({error.reason}); make it a folder that can be read and written"
        ) from error
    _report_skipped(damages, latest, found)
    return found


def _newest_sound(written: list[Path]) -> tuple[Path | None, list[str]]:
    """The first sound checkpoint of a list, and the damages of those before it."""
    damages: list[str] = []
    for path in written:
        damage = damage_on_any_rank(path) or on_first_rank(partial(find_damaged_progress, path))
        if damage is None:
            return path, damages
        damages.append(f"{path} is damaged: {damage}")
    return None, damages


def damage_on_any_rank(directory: Path) -> str | None:
    """The damage that any rank finds in a checkpoint, or None; called by all ranks, each of which reads some files."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, find_damage(directory, dist.get_rank(), dist.get_world_size()))
    return next((damage for damage in found if damage is not None), None)


def _latest_problem(directory: Path) -> str | None:
    """What is wrong with `latest`, or None. The run does not depend on it."""
    try:
        latest_checkpoint(directory)
    except DanglingLatestError as error:
        return str(error)
    return None


def _refuse_lost_checkpoints(directory: Path, problems: list[str]) -> None:
    raise UserError(
        f"run.dir: no sound checkpoint is left in {directory} ({'; '.join(problems)}); put one back, or use a new "
        f"run.dir, or delete {directory} to begin again"
    )


def _refuse_obstructions(obstructions: list[Path], found: Path | None) -> None:
    """Refuses what is no checkpoint and has the name of one that the run would write."""
    done = 0 if found is None else step_of_name(found.name)
    for path in obstructions:
        if step_of_name(path.name) > done:
            raise UserError(f"run.dir: {path} is not a checkpoint, and has the name of one; move it to another folder")


def _delete_unfinished(directory: Path) -> None:
    for path in unfinished_checkpoints(directory):
        print(f"checkpoint {path} was not written to its end; it is deleted", file=sys.stderr)
        delete(path)


def _report_skipped(damages: list[str], latest: str | None, found: Path | None) -> None:
    lines = [f"checkpoint {damage}; it is skipped" for damage in damages]
    if latest is not None and found is not None:
        lines.append(f"{latest}; {found.name} is used")
    if dist.get_rank() == 0:
        for line in lines:
            print(printable(line), file=sys.stderr)
