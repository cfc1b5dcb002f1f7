"""Which checkpoints are kept: the last few, every n-th, and the end of each stage; and how the others are deleted."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from nld_train.config.schema import CheckpointConfig
from nld_train.errors import UserError
from nld_train.files import synchronise
from nld_train.printable import one_line
from nld_train.training.checkpoint.contents import read_progress
from nld_train.training.checkpoint.paths import (
    UNFINISHED,
    step_of_name,
    unfinished_checkpoints,
    written_checkpoints,
)


def apply_retention(written: Path, rules: CheckpointConfig) -> None:
    """Deletes the checkpoints beside and before the one just written that no rule keeps; called by one process.

    Those of later steps were skipped as damaged. They are not counted, since they would displace sound ones, and not
    deleted: the run replaces them when it reaches their step. A checkpoint that cannot be deleted is reported.
    """
    if rules.keep_last is None:
        return
    try:
        known = [path for path in written_checkpoints(written.parent) if _step(path) <= _step(written)]
    except OSError as error:
        _warn(written.parent, error)
        return
    for path in known[rules.keep_last :]:
        # A link is not a checkpoint that the run wrote: it leads to one that is kept elsewhere.
        if not path.is_symlink() and not _kept_permanently(path, rules):
            _delete_checkpoint(path)


def _step(path: Path) -> int:
    return step_of_name(path.name)


def _kept_permanently(path: Path, rules: CheckpointConfig) -> bool:
    try:
        progress = read_progress(path)
    except UserError:  # damaged: not worth keeping
        return False
    return progress.ends_stage or (rules.keep_every is not None and progress.step % rules.keep_every == 0)


def _delete_checkpoint(path: Path) -> None:
    try:
        renamed = move_aside(path)
    except OSError as error:
        _warn(path, error)
    else:
        delete(renamed)


def move_aside(path: Path) -> Path:
    """Renames a checkpoint to an unfinished one: a kill while it is deleted cannot leave one that looks complete.

    Raises:
        OSError: it cannot be renamed.
    """
    renamed = unfinished_name(path)
    os.replace(path, renamed)
    return renamed


def delete(directory: Path) -> None:
    """Deletes what is left of a checkpoint; called by one process. A failure is printed as a warning.

    Of a link to a directory only the link is deleted. A checkpoint that cannot be deleted is no reason to end a run
    whose newest checkpoint is written.
    """
    try:
        if directory.is_symlink():
            directory.unlink()
        else:
            shutil.rmtree(directory)
    except OSError as error:
        _warn(directory, error)


def _warn(path: Path, error: OSError) -> None:
    line = f"warning: {path} cannot be deleted ({error.strerror or error}); the run continues"
    print(one_line(line), file=sys.stderr)


def make_room(final: Path) -> Path:
    """An empty directory to write a checkpoint into; called by one process.

    What a killed run left half-written or half-deleted is deleted where possible.

    Args:
        final: the directory's name when it is complete.

    Raises:
        OSError: no directory can be made there.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    synchronise(final.parent.parent)
    for leftover in unfinished_checkpoints(final.parent):
        delete(leftover)
    temporary = unfinished_name(final)
    temporary.mkdir()
    return temporary


def unfinished_name(path: Path) -> Path:
    """A name for a checkpoint that is written or deleted: with `.tmp` at its end, a number before it where needed."""
    names = (f"{path.name}{number}{UNFINISHED}" for number in ("", *(f".{number}" for number in range(2, 1000))))
    return next(other for name in names if not (other := path.with_name(name)).exists())
