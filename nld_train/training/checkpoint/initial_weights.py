"""`init.checkpoint`: the weights that a run starts from, out of a Megatron checkpoint or a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nld_train.config.schema import Config
from nld_train.data.tokenizer_files import TOKENIZER
from nld_train.data.vocabulary import holds_tokenizer, refuse_other_tokenizer
from nld_train.errors import UserError
from nld_train.registry import resolve
from nld_train.training.checkpoint import load as checkpoint
from nld_train.training.checkpoint.contents import saved_model
from nld_train.training.checkpoint.fallback import damage_on_any_rank
from nld_train.training.checkpoint.hub import initial_path
from nld_train.training.checkpoint.paths import find_initial_checkpoint, is_hugging_face
from nld_train.training.checkpoint.resume import refuse_other_model
from nld_train.training.loop.finite import non_finite_state
from nld_train.training.loop.optimizer import unwrap

# The readers of a Hugging Face directory, imported where one is given: conversion imports training, not the reverse.
_SHAPES_OF_HUGGING_FACE = "checkpoint_convert.direct:model_config_of"
_LOAD_HUGGING_FACE = "checkpoint_convert.direct:load_hugging_face"


def find_initial_weights(config: Config) -> Path | None:
    """The directory that `init.checkpoint` refers to, checked against the model; called by all ranks together.

    It is only needed where there is no checkpoint to continue from: that has all weights, and what the run was started
    from may have been deleted since.

    Raises:
        UserError: there is none, it is damaged, or its model is another one.
    """
    if config.init.checkpoint is None:
        return None
    given = find_initial_checkpoint(initial_path(config.init.checkpoint))
    if is_hugging_face(given):
        shapes = resolve(_SHAPES_OF_HUGGING_FACE)(given, config.model.mask_token_id)
        refuse_other_model(given, shapes, config.model)
        _refuse_other_tokenizer(given, config)
        return given
    if (damage := damage_on_any_rank(given)) is not None:
        raise UserError(f"init.checkpoint: {given} is damaged: {damage}; name another one")
    refuse_other_model(given, saved_model(given), config.model)
    _refuse_other_tokenizer(given / TOKENIZER, config)
    return given


def _refuse_other_tokenizer(own: Path, config: Config) -> None:
    """Refuses starting weights whose tokenizer is another one than that of the data: their ids mean other tokens."""
    named = config.data.tokenizer
    if named is not None and holds_tokenizer(own):
        remedy = "data.tokenizer (null: not compared with init.checkpoint)"
        refuse_other_tokenizer(named, remedy, [own], [], config.model)


def load_initial_weights(directory: Path, config: Config, model: list[Any]) -> None:
    """Loads the weights, and nothing else, into this rank's shard of the model, under any layout.

    Args:
        directory: from `find_initial_weights`.
        config: the run.
        model: this rank's chunks, wrapped.

    Raises:
        UserError: on every rank, if a weight is not a finite number.
    """
    if not is_hugging_face(directory):
        checkpoint.load(directory, model, None)
        return
    resolve(_LOAD_HUGGING_FACE)(directory, [unwrap(chunk) for chunk in model], config.model)
    if (bad := non_finite_state(model)) is not None:
        raise UserError(f"init.checkpoint: {directory}: {bad} contains NaN or infinity; name other weights")
