"""Reading a Hugging Face directory's `config.json` into a `ModelConfig`. Nothing there is executed.

Every value is taken from the directory itself. What a `ModelConfig` cannot express is refused, not dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nld_train.config.schema import SIZE_KEYS, ModelConfig, RopeParameters
from nld_train.errors import UserError

ARCHITECTURES = ("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM", "NemotronLabsDiffusionModel")
# The Ministral3 tokenizer's reserved id that stands at masked positions (reference section 1).
MINISTRAL3_MASK_TOKEN = 100
ROPE_TYPES = ("default", "yarn")

# Keys beside those of `RopeParameters`, with the values under which they change nothing. `type` is the older name of
# `rope_type`; `max_position_embeddings` is a copy of the model's, read by nothing.
_ROPE_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (None, 1, 1.0),
    "attention_factor": (None,),
    "truncate": (None, True),
}
# The same where `keeps_lengths`: other programs' ways to say it.
_UNSCALED: dict[str, tuple[Any, ...]] = {"attention_factor": (None, 1), "apply_yarn_scaling": (None, False)}
_ROPE_ALIASES = ("type", "max_position_embeddings")
# Settings of the decoder that only have one supported value; absent means that value.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "sliding_window": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}


@dataclass(frozen=True)
class SourceConfig:
    """What a Hugging Face directory says of its model.

    Attributes:
        directory: where it lies.
        architecture: one of `ARCHITECTURES`.
        outer: the whole `config.json`.
        text: the part that describes the text decoder; the same as `outer` where there is no wrapper.
        generation: `generation_config.json`, empty where there is none.
    """

    directory: Path
    architecture: str
    outer: dict[str, Any]
    text: dict[str, Any]
    generation: dict[str, Any]

    @property
    def quantization(self) -> dict[str, Any] | None:
        """Settings of quantised weights."""
        return self.outer.get("quantization_config") or self.text.get("quantization_config")

    @property
    def dtype(self) -> str:
        """Name of the type that the model computes in, which quantised weights unfold to."""
        for config in (self.text, self.outer):
            if name := config.get("dtype") or config.get("torch_dtype"):
                return str(name).removeprefix("torch.")
        return "bfloat16"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def read_source_config(directory: Path) -> SourceConfig:
    """Reads and checks `config.json` and, where there is one, `generation_config.json`.

    Raises:
        UserError: there is no `config.json`, or the architecture is not one of `ARCHITECTURES`.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: has no config.json; name a Hugging Face model directory")
    outer = read_json(path)
    named = outer.get("architectures") or [f"of model_type {outer.get('model_type')!r}"]
    architecture = str(named[0])
    if len(named) != 1 or architecture not in ARCHITECTURES:
        raise UserError(
            f"{path}: architecture {', '.join(map(str, named))} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    text = _text_config(path, outer) if architecture == "Mistral3ForConditionalGeneration" else outer
    generation = directory / "generation_config.json"
    return SourceConfig(directory, architecture, outer, text, read_json(generation) if generation.is_file() else {})


def _text_config(path: Path, outer: dict[str, Any]) -> dict[str, Any]:
    text = outer.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"{path}: has no text_config, which {outer['architectures'][0]} needs")
    if text.get("model_type") != "ministral3":
        raise UserError(
            f"{path}: text_config.model_type {text.get('model_type')!r} is not supported; it must be 'ministral3'"
        )
    return text


def model_config(source: SourceConfig, mask_token_id: int | None = None) -> ModelConfig:
    """The model as the settings of a run describe it.

    Args:
        source: what the directory says.
        mask_token_id: for a model that names none; None takes that of the Ministral3 tokenizer, or the last id of a
            smaller vocabulary.

    Raises:
        UserError: a value is missing or wrong, or says what a `ModelConfig` cannot; names the key.
    """
    text, path = source.text, source.directory / "config.json"
    for key, valid in _FIXED.items():
        if text.get(key, valid[0]) not in valid:
            raise UserError(f"{path}: {key}={text[key]!r} is not supported; it must be {json.dumps(valid[0])}")
    _refuse_layer_types(path, text)
    shapes = {key: _positive_integer(path, text, key) for key in SIZE_KEYS}
    if shapes["num_attention_heads"] % shapes["num_key_value_heads"]:
        raise UserError(
            f"{path}: num_attention_heads={shapes['num_attention_heads']} must be a multiple of "
            f"num_key_value_heads={shapes['num_key_value_heads']}"
        )
    return ModelConfig(
        name=f"{source.directory.resolve().name}",
        **shapes,
        rms_norm_eps=_number(path, text, "rms_norm_eps"),
        initializer_range=_number(path, {"initializer_range": 0.02, **text}, "initializer_range"),
        mask_token_id=_mask_token(source, shapes["vocab_size"], mask_token_id),
        **_token_ids(source),
        rope_parameters=rope_parameters(path, text),
    )


def _refuse_layer_types(path: Path, text: dict[str, Any]) -> None:
    if other := {str(kind) for kind in text.get("layer_types") or ()} - {"full_attention"}:
        raise UserError(f"{path}: layer_types {', '.join(sorted(other))} are not supported; only full_attention is")


def _positive_integer(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path}: {key} must be an integer above 0, but is {_shown(config, key)}")
    return value


def _number(path: Path, config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{path}: {key} must be a number, but is {_shown(config, key)}")
    return float(value)


def _shown(config: dict[str, Any], key: str) -> str:
    return json.dumps(config[key]) if key in config else "missing"


def _mask_token(source: SourceConfig, vocabulary: int, given: int | None) -> int:
    token = source.text.get("mask_token_id", given)
    if token is None:
        token = min(MINISTRAL3_MASK_TOKEN, vocabulary - 1)
    if not isinstance(token, int) or not 0 <= token < vocabulary:
        raise UserError(
            f"{source.directory}: mask_token_id {token} is not an id of its vocabulary of {vocabulary}; "
            "name one with --mask-token-id"
        )
    return token


def _token_ids(source: SourceConfig) -> dict[str, int]:
    """First, last and padding token; where `config.json` leaves one open, the generation config's, else Ministral3's.

    A list of stop tokens stays whole in the generation config; the first of them ends documents.
    """
    found: dict[str, int] = {}
    for key, default in (("eos_token_id", 2), ("bos_token_id", 1), ("pad_token_id", 11)):
        value = source.text.get(key)
        if value is None:
            value = source.generation.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if value is None:
            value = found["eos_token_id"] if key in source.text and found else default
        if not isinstance(value, int):
            raise UserError(f"{source.directory}/config.json: {key} must be a token id, but is {value!r}")
        found[key] = value
    return found


def rope_parameters(path: Path, text: dict[str, Any]) -> RopeParameters:
    """The rotary embedding of a text config, in today's form (`rope_parameters`) or the older one (`rope_scaling`).

    Raises:
        UserError: a rope_type other than `ROPE_TYPES`, a missing value, or a setting that changes the result and has no
            place in `RopeParameters`.
    """
    given = text.get("rope_parameters") or {"rope_theta": text.get("rope_theta"), **(text.get("rope_scaling") or {})}
    rope_type = _rope_type(given)
    if rope_type not in ROPE_TYPES:
        raise UserError(f"{path}: rope_type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    names = [field.name for field in fields(RopeParameters)]
    needed = ["rope_theta", *(["factor", "original_max_position_embeddings"] if rope_type == "yarn" else [])]
    for key in needed:
        _number(path, given, key)
    without_effect = _ROPE_WITHOUT_EFFECT | (_UNSCALED if keeps_lengths(given) else {})
    for key, value in given.items():
        if key not in (*names, *_ROPE_ALIASES) and value not in without_effect.get(key, ()):
            raise UserError(f"{path}: rope_parameters.{key}={json.dumps(value)} is not supported")
    return _normalised({**{name: given.get(name) for name in names}, "rope_type": rope_type})


def _rope_type(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def keeps_lengths(rope: dict[str, Any]) -> bool:
    """Whether cosines and sines are multiplied by nothing but 1, by `transformers`' rule for yarn."""
    mscale = rope.get("mscale")
    return _rope_type(rope) != "yarn" or rope["factor"] <= 1 or bool(mscale and mscale == rope.get("mscale_all_dim"))


def _normalised(values: dict[str, Any]) -> RopeParameters:
    """One form for one meaning: plain rotary embedding without a query scale has no length of its own.

    Our export writes a scale of 0 there, because `transformers` computes with the value without asking for it.
    """
    if values["rope_type"] == "default" and not values["llama_4_scaling_beta"]:
        values = {"rope_type": "default", "rope_theta": values["rope_theta"]}
        values |= {field.name: None for field in fields(RopeParameters) if field.name not in values}
    values = {key: float(value) if isinstance(value, int) else value for key, value in values.items()}
    if (length := values["original_max_position_embeddings"]) is not None:
        values["original_max_position_embeddings"] = int(length)
    return RopeParameters(**values)
