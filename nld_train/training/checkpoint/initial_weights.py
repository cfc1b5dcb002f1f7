"""`init.checkpoint`: the weights that a run starts from, out of a Megatron checkpoint or a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.training.checkpoint import load as checkpoint
from nld_train.training.checkpoint.fallback import agreed_damage
from nld_train.training.checkpoint.resume import refuse_other_model
from nld_train.training.loop.optimizer import unwrap


def find_starting_weights(config: Config) -> Path | None:
    """The directory that `init.checkpoint` means, checked against the model; called by all ranks together.

    Only where there is no checkpoint to go on from: that holds all weights, and what it was started from may be gone.

    Raises:
        UserError: there is none, it is damaged, or it holds another model.
    """
    if config.init.checkpoint is None:
        return None
    given = Path(config.init.checkpoint)
    if _is_hugging_face(given):
        from checkpoint_convert.direct import model_config_of

        refuse_other_model(given, model_config_of(given, config.model.mask_token_id), config.model)
        return given
    directory = checkpoint.resolve_checkpoint(config.init.checkpoint)
    if (damage := agreed_damage(directory)) is not None:
        raise UserError(f"init.checkpoint: {directory} is damaged: {damage}; name another one")
    refuse_other_model(directory, checkpoint.saved_model(directory), config.model)
    return directory


def load_starting_weights(directory: Path, config: Config, model: list[Any]) -> None:
    """Loads the weights, and nothing else, into this rank's part of the model, under any layout.

    Args:
        directory: from `find_starting_weights`.
        config: the run.
        model: this rank's chunks, wrapped.
    """
    if not _is_hugging_face(directory):
        checkpoint.load(directory, model, None)
        return
    from checkpoint_convert.direct import load_hugging_face

    load_hugging_face(directory, [unwrap(chunk) for chunk in model], config.model)


def _is_hugging_face(directory: Path) -> bool:
    return (directory / "config.json").is_file()
