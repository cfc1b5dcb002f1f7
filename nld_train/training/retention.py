"""Which checkpoints are kept: the last few, every n-th, and the end of each stage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nld_train.config.schema import CheckpointConfig
from nld_train.training.checkpoint import UNFINISHED, read_progress, written_checkpoints


def apply_retention(written: Path, rules: CheckpointConfig) -> None:
    """Deletes the checkpoints beside and before the one just written that no rule keeps; called by one process.

    Those of later steps were passed over as damaged. They do not count, or they would displace sound ones, and are left
    alone: the run writes over them when it comes there. Each is renamed before it is deleted, so that a kill in the
    middle leaves nothing that looks like a checkpoint.
    """
    if rules.keep_last is None:
        return
    known = [path for path in written_checkpoints(written.parent) if path.name <= written.name]
    for path in known[rules.keep_last :]:
        if not _kept_for_good(path, rules):
            doomed = path.with_name(f"{path.name}{UNFINISHED}")
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def _kept_for_good(path: Path, rules: CheckpointConfig) -> bool:
    try:
        progress = read_progress(path)
    except (OSError, ValueError, KeyError):  # damaged: nothing to keep for good
        return False
    return progress.ends_stage or (rules.keep_every is not None and progress.step % rules.keep_every == 0)
