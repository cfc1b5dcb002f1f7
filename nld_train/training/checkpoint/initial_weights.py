"""`init.checkpoint`: the weights that a run starts from, out of a Megatron checkpoint or a Hugging Face directory."""

from __future__ import annotations

from dataclasses import asdict
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
# Keys of `model.vision` that say how pictures are written as tokens, not what the tower computes.
_INDEPENDENT_OF_THE_TOWER = ("image_size", "image_token_id", "image_break_token_id", "image_end_token_id")


def find_initial_weights(config: Config) -> Path | None:
    """The directory that `init.checkpoint` refers to, checked against the model; called by all ranks together.

    It is only needed where there is no checkpoint to continue from: that has all weights, and what the run was started
    from may have been deleted since.

    Raises:
        UserError: there is none, it is damaged, or its model is another one.
    """
    if config.init.checkpoint is None:
        return None
    if config.init.vision is not None:
        _check_tower(Path(config.init.vision), config)
    given = find_initial_checkpoint(initial_path(config.init.checkpoint))
    if is_hugging_face(given):
        # A run on text, or with another directory's tower, starts from a model with any tower.
        vision = None if config.model.vision is not None and config.init.vision is None else False
        shapes = resolve(_SHAPES_OF_HUGGING_FACE)(given, config.model.mask_token_id, vision)
        _refuse_other_model(given, shapes, config)
        _refuse_other_tokenizer(given, config)
        return given
    if (damage := damage_on_any_rank(given)) is not None:
        raise UserError(f"init.checkpoint: {given} is damaged: {damage}; name another one")
    _refuse_other_model(given, saved_model(given), config)
    _refuse_other_tokenizer(given / TOKENIZER, config)
    return given


def _refuse_other_model(given: Path, saved: dict[str, Any], config: Config) -> None:
    """Refuses other text models, other towers where one is read from here, and none where one is needed."""
    tower = saved.get("vision")
    refuse_other_model(given, {key: value for key, value in saved.items() if key != "vision"}, config.model)
    if config.model.vision is None or config.init.vision is not None:
        return
    if tower is None:
        raise UserError(
            f"init.checkpoint: {given} is a text model, and model.vision needs a vision tower; name a multimodal "
            "directory with init.vision, or set model.vision=null"
        )
    _refuse_other_tower("init.checkpoint", given, tower, config)


def _check_tower(given: Path, config: Config) -> None:
    """Refuses a directory of `init.vision` without the tower of the run."""
    if not is_hugging_face(given):
        raise UserError(f"init.vision: {given} is no Hugging Face directory; name one with a vision tower")
    # Raises where it has none.
    shapes = resolve(_SHAPES_OF_HUGGING_FACE)(given, config.model.mask_token_id, True)
    _refuse_other_tower("init.vision", given, shapes["vision"], config)
    hidden = shapes["hidden_size"]
    if hidden != config.model.hidden_size:
        raise UserError(
            f"init.vision: the projector of {given} is for a text model of hidden_size {hidden}, and "
            f"model.hidden_size={config.model.hidden_size}"
        )


def _refuse_other_tower(key: str, given: Path, tower: dict[str, Any], config: Config) -> None:
    assert config.model.vision is not None
    for name, wanted in asdict(config.model.vision).items():
        if name not in _INDEPENDENT_OF_THE_TOWER and tower.get(name, wanted) != wanted:
            raise UserError(
                f"{key}: {given} has model.vision.{name}={tower[name]}, and the run {wanted}; use that value"
            )


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
    tower, chunks, load = config.init.vision, [unwrap(chunk) for chunk in model], resolve(_LOAD_HUGGING_FACE)
    if is_hugging_face(directory):
        load(directory, chunks, config.model, None if tower is None else "text")
    else:
        checkpoint.load(directory, model, None, text_alone=tower is not None)
    if tower is not None:
        load(Path(tower), chunks, config.model, "vision")
    if not (tower or is_hugging_face(directory)):
        return
    if (bad := non_finite_state(model)) is not None:
        raise UserError(f"init.checkpoint: {tower or directory}: {bad} contains NaN or infinity; name other weights")
