"""Finds the checkpoint from which a run continues: the newest sound one. Skipped ones are listed on standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from nld_train.errors import UserError
from nld_train.training.checkpoint.manifest import find_damage
from nld_train.training.checkpoint.paths import LATEST, latest_name, unfinished_checkpoints, written_checkpoints


def newest_sound_checkpoint(directory: Path) -> Path | None:
    """The checkpoint to continue from, the same on every rank; called by all of them together.

    Args:
        directory: `<run.dir>/checkpoints`.

    Returns:
        None where the run never completed a checkpoint: it starts at its first step.

    Raises:
        UserError: there are checkpoints, or were, and none is sound. To start again would drop all steps made so far
            and write over what may still be repaired.
    """
    written = _listed_by_first_rank(directory)
    damages: list[str] = []
    for path in written:
        damage = damage_on_any_rank(path)
        if damage is None:
            _print_on_first_rank([*_unfinished(directory), *map(_skipped, damages), *_lost_latest(directory, path)])
            return path
        damages.append(f"{path} is damaged: {damage}")
    _refuse_lost_checkpoints(directory, damages)
    _print_on_first_rank(_unfinished(directory))
    return None


def _refuse_lost_checkpoints(directory: Path, damages: list[str]) -> None:
    if not damages and not (directory / LATEST).is_file():
        return
    found = "; ".join(damages) or f"{LATEST} names {latest_name(directory)}, which does not exist"
    raise UserError(
        f"run.dir: no sound checkpoint is left in {directory} ({found}); put one back, or use a new run.dir, "
        f"or delete {directory} to begin again"
    )


def _listed_by_first_rank(directory: Path) -> list[Path]:
    """The written checkpoints as rank 0 lists them, the newest first: on a network disk other ranks may see others."""
    listed = [written_checkpoints(directory)]
    dist.broadcast_object_list(listed, src=0)
    return listed[0]


def damage_on_any_rank(directory: Path) -> str | None:
    """The damage that any rank finds in a checkpoint, or None; called by all ranks, each of which reads some files."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, find_damage(directory, dist.get_rank(), dist.get_world_size()))
    return next((damage for damage in found if damage is not None), None)


def _unfinished(directory: Path) -> list[str]:
    return [
        f"checkpoint {path} was not written to its end; it is skipped" for path in unfinished_checkpoints(directory)
    ]


def _skipped(damage: str) -> str:
    return f"checkpoint {damage}; it is skipped"


def _lost_latest(directory: Path, chosen: Path) -> list[str]:
    """A line if `latest` names no existing directory. The run continues: it does not depend on `latest`."""
    name = latest_name(directory)
    if name is None or (directory / name).is_dir():
        return []
    return [f"checkpoint {directory / name}, named by {LATEST}, does not exist; {chosen.name} is used"]


def _print_on_first_rank(lines: list[str]) -> None:
    if dist.get_rank() == 0:
        for line in lines:
            print(line, file=sys.stderr)
