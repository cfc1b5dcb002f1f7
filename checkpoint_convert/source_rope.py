"""The rotary embedding of a Hugging Face `config.json`, in the current or the older form."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from checkpoint_convert.source_values import number, shown
from nld_train.config.rope import ROPE_TYPES
from nld_train.config.schema import RopeParameters
from nld_train.errors import UserError
from nld_train.outside_json import brief

# Keys that `RopeParameters` does not have, with the values that have no effect.
_ROPE_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (None, 1, 1.0),
    "attention_factor": (None,),
    "truncate": (None, True),
}
# Such values if `keeps_lengths`; among them keys of other programs.
_UNSCALED: dict[str, tuple[Any, ...]] = {"attention_factor": (None, 1), "apply_yarn_scaling": (None, False)}
# `type` is the older name of `rope_type`; `max_position_embeddings` is a copy of the model's, which is not used.
_ROPE_ALIASES = ("type", "max_position_embeddings")
# Numbers that may be missing; for `transformers` a multiplier of 0 is the same as none.
_ROPE_ABOVE_ZERO = ("factor", "beta_fast", "beta_slow")
_ROPE_FROM_ZERO = ("mscale", "mscale_all_dim", "llama_4_scaling_beta")


def rope_parameters(path: Path, text: dict[str, Any]) -> RopeParameters:
    """The rotary embedding of a text config, in the current (`rope_parameters`) or the older form (`rope_scaling`).

    Raises:
        UserError: a rope_type other than `ROPE_TYPES`, a missing value, or a setting that changes the result and has no
            field in `RopeParameters`.
    """
    given = _given_rope(path, text)
    rope_type = _rope_type(given)
    if rope_type not in ROPE_TYPES:
        raise UserError(f"{path}: rope_type {brief(rope_type)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    names = [field.name for field in fields(RopeParameters)]
    _check_rope_numbers(path, given, yarn=rope_type == "yarn")
    without_effect = _ROPE_WITHOUT_EFFECT | (_UNSCALED if keeps_lengths(given) else {})
    for key, value in given.items():
        if key not in (*names, *_ROPE_ALIASES) and value not in without_effect.get(key, ()):
            raise UserError(f"{path}: rope_parameters.{key}={brief(value)} is not supported")
    return _normalised({**{name: given.get(name) for name in names}, "rope_type": rope_type})


def _given_rope(path: Path, text: dict[str, Any]) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        if text.get(key) and not isinstance(text[key], dict):
            raise UserError(f"{path}: {key} must be an object, but is {shown(text, key)}")
    return text.get("rope_parameters") or {"rope_theta": text.get("rope_theta"), **(text.get("rope_scaling") or {})}


def _check_rope_numbers(path: Path, rope: dict[str, Any], yarn: bool) -> None:
    needed = ("rope_theta", *(("factor", "original_max_position_embeddings") if yarn else ()))
    for key in ("rope_theta", *_ROPE_ABOVE_ZERO, *_ROPE_FROM_ZERO):
        if key in needed or rope.get(key) is not None:
            number(path, rope, key, from_zero=key in _ROPE_FROM_ZERO)
    key = "original_max_position_embeddings"
    if (key in needed or rope.get(key) is not None) and (number(path, rope, key) % 1 or rope[key] > 2**53):
        raise UserError(f"{path}: {key} must be an integer above 0, but is {shown(rope, key)}")


def _rope_type(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def keeps_lengths(rope: dict[str, Any]) -> bool:
    """Whether the factor on cosines and sines (`transformers`' rule for yarn) is 1."""
    mscale = rope.get("mscale")
    return _rope_type(rope) != "yarn" or rope["factor"] <= 1 or bool(mscale and mscale == rope.get("mscale_all_dim"))


def _normalised(values: dict[str, Any]) -> RopeParameters:
    """Makes equal embeddings equal objects: a default embedding without a query scale has no original length.

    An export has a scale of 0 in this case, because `transformers` always computes with these values.
    """
    if values["rope_type"] == "default" and not values["llama_4_scaling_beta"]:
        values = {"rope_type": "default", "rope_theta": values["rope_theta"]}
        values |= {field.name: None for field in fields(RopeParameters) if field.name not in values}
    values = {key: float(value) if isinstance(value, int) else value for key, value in values.items()}
    if (length := values["original_max_position_embeddings"]) is not None:
        values["original_max_position_embeddings"] = int(length)
    return RopeParameters(**values)
