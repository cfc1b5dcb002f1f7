"""Which checkpoints are kept: the last few, every n-th, and the end of each stage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nld_train.config.schema import CheckpointConfig
from nld_train.training.checkpoint import read_progress, written_checkpoints


def apply_retention(directory: Path, rules: CheckpointConfig) -> None:
    """Deletes the checkpoints under `<run.dir>/checkpoints` that no rule keeps; called by one process.

    Each is renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
    """
    if rules.keep_last is None:
        return
    for path in written_checkpoints(directory)[rules.keep_last :]:
        if not _kept_for_good(path, rules):
            doomed = path.with_name(f"{path.name}.tmp")
            os.replace(path, doomed)
            shutil.rmtree(doomed)


def _kept_for_good(path: Path, rules: CheckpointConfig) -> bool:
    progress = read_progress(path)
    return progress.ends_stage or (rules.keep_every is not None and progress.step % rules.keep_every == 0)
