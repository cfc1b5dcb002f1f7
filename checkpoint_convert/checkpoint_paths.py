"""Which checkpoint a path refers to; imports no torch."""

from __future__ import annotations

from pathlib import Path

from nld_train.errors import UserError
from nld_train.training.checkpoint.paths import find_checkpoint, is_hugging_face


def require_megatron(path: Path) -> Path:
    """The Megatron checkpoint at a path: itself, or the newest one of a run.

    Raises:
        UserError: there is none.
    """
    found = find_checkpoint(path)
    if found is None:
        raise UserError(
            f"{path}: is neither a checkpoint, nor a run with checkpoints/latest, nor a Hugging Face directory"
        )
    return found


def require_not_exported(path: Path) -> None:
    """Refuses to export what is a Hugging Face directory already.

    Raises:
        UserError: it is one.
    """
    if is_hugging_face(path):
        raise UserError(f"{path}: is a Hugging Face directory already; import it first to export it in another format")
