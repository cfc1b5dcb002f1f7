"""The vision tower and projector in a Hugging Face directory's `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoint_convert.source_values import is_token, number, positive_integer, shown
from nld_train.config.schema import VisionConfig
from nld_train.config.vision_tensors import CHANNELS
from nld_train.errors import UserError
from nld_train.outside_json import read_object

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
# Names of the tokens that end a row and a picture, and where their ids are after that of `[IMG]` in Ministral3's
# tokenizers, whose configuration does not have them.
_OTHER_TOKENS = {"image_break_token_id": ("[IMG_BREAK]", 2), "image_end_token_id": ("[IMG_END]", 3)}
# Settings with one supported value, which is also the default; the first two of the tower.
_FIXED: dict[str, Any] = {"num_channels": CHANNELS, "attention_dropout": 0.0}
_LAST_LAYER = -1


def vision_config(directory: Path, outer: dict[str, Any], vocabulary: int) -> VisionConfig:
    """The `VisionConfig` of a directory's model.

    Args:
        directory: of the model.
        outer: its whole `config.json`.
        vocabulary: of the text model.

    Raises:
        UserError: it is a text model, or a value is missing, wrong, or cannot be expressed in a `VisionConfig`.
    """
    path = directory / "config.json"
    tower = outer.get("vision_config")
    if not isinstance(tower, dict):
        raise UserError(
            f"{path}: has no vision_config: it is a text model, and a vision tower is needed; name a multimodal "
            "directory (Mistral3ForConditionalGeneration)"
        )
    _refuse_other_towers(path, outer, tower)
    image = outer.get("image_token_index", outer.get("image_token_id", 10))
    if not is_token(image, vocabulary):
        raise UserError(f"{path}: image_token_index {image} is not an id of its vocabulary of {vocabulary}")
    sizes = {key: positive_integer(path, tower, key) for key in _SIZES}
    return VisionConfig(
        **sizes,
        spatial_merge_size=positive_integer(path, {"spatial_merge_size": 2, **outer}, "spatial_merge_size"),
        hidden_act=_name(path, {"hidden_act": "gelu", **tower}, "hidden_act"),
        rope_theta=_rope_theta(path, tower),
        projector_hidden_act=_name(path, {"projector_hidden_act": "gelu", **outer}, "projector_hidden_act"),
        multimodal_projector_bias=bool(outer.get("multimodal_projector_bias", False)),
        image_token_id=image,
        **_other_tokens(directory, outer, image, vocabulary),
    )


def _refuse_other_towers(path: Path, outer: dict[str, Any], tower: dict[str, Any]) -> None:
    if tower.get("model_type", "pixtral") != "pixtral":
        raise UserError(f"{path}: vision_config.model_type {shown(tower, 'model_type')} must be pixtral")
    for key, valid in _FIXED.items():
        if tower.get(key, valid) != valid:
            raise UserError(f"{path}: vision_config.{key}={shown(tower, key)} is not supported; it must be {valid}")
    if outer.get("vision_feature_layer", _LAST_LAYER) != _LAST_LAYER:
        raise UserError(
            f"{path}: vision_feature_layer={shown(outer, 'vision_feature_layer')} is not supported; it must be "
            f"{_LAST_LAYER}, the last layer"
        )
    heads, width = positive_integer(path, tower, "num_attention_heads"), positive_integer(path, tower, "hidden_size")
    if tower.get("head_dim") not in (None, width / heads):
        raise UserError(
            f"{path}: vision_config.head_dim={shown(tower, 'head_dim')} must be hidden_size / num_attention_heads"
        )


def _rope_theta(path: Path, tower: dict[str, Any]) -> float:
    rope = tower.get("rope_parameters")
    values = {"rope_theta": 10000.0, **tower, **(rope if isinstance(rope, dict) else {})}
    return number(path, values, "rope_theta")


def _name(path: Path, config: dict[str, Any], key: str) -> str:
    if not isinstance(config[key], str):
        raise UserError(f"{path}: {key} must be the name of an activation, but is {shown(config, key)}")
    return str(config[key])


def _other_tokens(directory: Path, outer: dict[str, Any], image: int, vocabulary: int) -> dict[str, int]:
    """Ids of the tokens that end rows and pictures: of `config.json`, else of the tokenizer, else as Ministral3's."""
    file, found = directory / "tokenizer.json", {}
    added = read_object(file).get("added_tokens") if file.is_file() else None
    known = {each.get("content"): each.get("id") for each in added or [] if isinstance(each, dict)}
    for key, (name, distance) in _OTHER_TOKENS.items():
        token = outer.get(key, known.get(name))
        token = min(image + distance, vocabulary - 1) if token is None else token
        if not is_token(token, vocabulary):
            raise UserError(f"{directory}: {key} {token} is not an id of its vocabulary of {vocabulary}")
        found[key] = int(token)
    return found
