"""Reads a Hugging Face directory's `config.json` into a `ModelConfig`; no code of the directory is executed.

Every value comes from the directory. A setting that a `ModelConfig` cannot express is an error; it is not ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.source_rope import rope_parameters
from checkpoint_convert.source_values import is_token, named_tokens, number, positive_integer, shown
from checkpoint_convert.source_vision import vision_config
from nld_train.config.schema import SIZE_KEYS, ModelConfig
from nld_train.decoding.clean_stream import CleanStream
from nld_train.errors import UserError
from nld_train.outside_json import brief, read_object

WRAPPER = "Mistral3ForConditionalGeneration"
OWN = "NemotronLabsDiffusionModel"
OWN_VISION = "NemotronLabsDiffusionVLMModel"
ARCHITECTURES = (WRAPPER, "Ministral3ForCausalLM", OWN, OWN_VISION)
# The mask token: a reserved id of the Ministral3 tokenizer (docs/method.md, "Objective").
MINISTRAL3_MASK_TOKEN = 100

# Settings of the decoder with one supported value, which is also the default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "sliding_window": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
}

# Tokens per block of the released models, if a directory does not say (docs/method.md, "Noise").
BLOCK_SIZE = 32


@dataclass(frozen=True)
class SourceConfig:
    """The configuration files of a Hugging Face directory.

    Attributes:
        directory: of the model.
        architecture: one of `ARCHITECTURES`.
        outer: the whole `config.json`.
        text: the part that describes the text decoder; the same as `outer` if there is no wrapper.
        generation: `generation_config.json`; empty if there is none.
    """

    directory: Path
    architecture: str
    outer: dict[str, Any]
    text: dict[str, Any]
    generation: dict[str, Any]

    @property
    def dtype(self) -> str:
        """Name of the type in which the model computes, and to which quantised weights are dequantised."""
        for config in (self.text, self.outer):
            if name := config.get("dtype") or config.get("torch_dtype"):
                return str(name).removeprefix("torch.")
        return "bfloat16"


def read_source_config(directory: Path) -> SourceConfig:
    """Reads and checks `config.json` and, where there is one, `generation_config.json`.

    Raises:
        UserError: there is no `config.json`, or the architecture is not one of `ARCHITECTURES`.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: has no config.json; name a Hugging Face model directory")
    outer = read_object(path)
    named = outer.get("architectures") or [f"of model_type {shown(outer, 'model_type')}"]
    if not isinstance(named, list):
        raise UserError(f"{path}: architectures must be a list of one name, but is {shown(outer, 'architectures')}")
    architecture = _name(named[0])
    if len(named) != 1 or architecture not in ARCHITECTURES:
        others, supported = ", ".join(map(_name, named)), ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: architecture {others} is not supported; supported: {supported}")
    text = _text_config(path, outer) if architecture == WRAPPER else outer
    generation = directory / "generation_config.json"
    return SourceConfig(directory, architecture, outer, text, read_object(generation) if generation.is_file() else {})


def _name(value: Any) -> str:
    return value if isinstance(value, str) else brief(value)


def _text_config(path: Path, outer: dict[str, Any]) -> dict[str, Any]:
    text = outer.get("text_config")
    if not isinstance(text, dict):
        raise UserError(f"{path}: has no text_config, which {outer['architectures'][0]} requires")
    if text.get("model_type") != "ministral3":
        raise UserError(
            f"{path}: text_config.model_type {shown(text, 'model_type')} is not supported; it must be ministral3"
        )
    return text


def model_config(source: SourceConfig, mask_token_id: int | None = None, vision: bool | None = None) -> ModelConfig:
    """The `ModelConfig` of a directory's model.

    Args:
        source: the directory's configuration.
        vision: whether with its vision tower; None: with that of an export, and without that of a Mistral3 wrapper.
        mask_token_id: for a model whose config has none; None for that of the Ministral3 tokenizer, or the last id of a
            smaller vocabulary.

    Raises:
        UserError: a value is missing, wrong, or cannot be expressed in a `ModelConfig`; names the key.
    """
    text, path = source.text, source.directory / "config.json"
    for key, valid in _FIXED.items():
        if text.get(key, valid[0]) not in valid:
            raise UserError(f"{path}: {key}={shown(text, key)} is not supported; it must be {brief(valid[0])}")
    _refuse_layer_types(path, text)
    if source.architecture in (OWN, OWN_VISION):
        _check_diffusion(path, text)
    shapes = {key: positive_integer(path, text, key) for key in SIZE_KEYS}
    vision = source.architecture == OWN_VISION if vision is None else vision
    if shapes["num_attention_heads"] % shapes["num_key_value_heads"]:
        raise UserError(
            f"{path}: num_attention_heads={shapes['num_attention_heads']} must be a multiple of "
            f"num_key_value_heads={shapes['num_key_value_heads']}"
        )
    return ModelConfig(
        name=f"{source.directory.resolve().name}",
        **shapes,
        rms_norm_eps=number(path, text, "rms_norm_eps"),
        initializer_range=number(path, {"initializer_range": 0.02, **text}, "initializer_range"),
        mask_token_id=_mask_token(source, shapes["vocab_size"], mask_token_id),
        **_token_ids(source, shapes["vocab_size"]),
        rope_parameters=rope_parameters(path, text),
        vision=vision_config(source.directory, source.outer, shapes["vocab_size"]) if vision else None,
    )


def _check_diffusion(path: Path, text: dict[str, Any]) -> None:
    """The settings of the objective, which an export of the model keeps."""
    if text.get("dlm_paradigm") not in (None, "bidirectional"):
        raise UserError(f'{path}: dlm_paradigm={shown(text, "dlm_paradigm")} is not supported; only "bidirectional" is')
    if text.get("block_size") is not None:
        positive_integer(path, text, "block_size")
    if text.get("dlm_clean") not in (None, "causal", "block"):
        raise UserError(f'{path}: dlm_clean={shown(text, "dlm_clean")} must be "causal" or "block"')
    for key in ("dlm_loss_weight", "ar_loss_weight"):
        if text.get(key) is not None:
            number(path, text, key, from_zero=True)


def _refuse_layer_types(path: Path, text: dict[str, Any]) -> None:
    kinds = text.get("layer_types") or []
    if not isinstance(kinds, list):
        raise UserError(f"{path}: layer_types must be a list of names, but is {shown(text, 'layer_types')}")
    if other := {_name(kind) for kind in kinds} - {"full_attention"}:
        raise UserError(f"{path}: layer_types {', '.join(sorted(other))} are not supported; only full_attention is")


def _mask_token(source: SourceConfig, vocabulary: int, given: int | None) -> int:
    token, remedy = source.text.get("mask_token_id"), "correct it in config.json"
    if token is None:
        token, remedy = given, "give another one with --mask-token-id"
    if token is None:
        token = min(MINISTRAL3_MASK_TOKEN, vocabulary - 1)
    if not is_token(token, vocabulary):
        raise UserError(
            f"{source.directory}: mask_token_id {token} is not an id of its vocabulary of {vocabulary}; {remedy}"
        )
    return int(token)


def stop_tokens(source: SourceConfig, vocabulary: int) -> tuple[int, ...]:
    """The ids that end a text: those of the generation config, else of `config.json`; empty if neither names one.

    Raises:
        UserError: a value that is not an id of the vocabulary.
    """
    files = {"generation_config.json": source.generation, "config.json": source.text}
    named = [named_tokens(source.directory / name, file, "eos_token_id", vocabulary) for name, file in files.items()]
    return tuple(next(filter(None, named), ()))


def _token_ids(source: SourceConfig, vocabulary: int) -> dict[str, int]:
    """BOS, EOS and padding token: of `config.json`, else of the generation config, else Ministral3's.

    Of a list of stop tokens the first one ends documents; the list stays in the generation config.
    """
    found: dict[str, int] = {}
    for key, default in (("eos_token_id", 2), ("bos_token_id", 1), ("pad_token_id", 11)):
        named = named_tokens(source.directory / "config.json", source.text, key, vocabulary)
        named += named_tokens(source.directory / "generation_config.json", source.generation, key, vocabulary)
        if not named:
            named = [found["eos_token_id"] if key in source.text and found else min(default, vocabulary - 1)]
        found[key] = named[0]
    return found


def block_size(path: Path, config: dict[str, Any]) -> int:
    """Tokens per block in the training of a model with this `config.json`.

    Raises:
        UserError: the key is not a positive integer.
    """
    return positive_integer(path, {"block_size": BLOCK_SIZE, **config}, "block_size")


def clean_stream(path: Path, config: dict[str, Any]) -> CleanStream:
    """How a model with this `config.json` was trained to see a text; a null weight of a loss is 1."""
    block = block_size(path, config) if config.get("dlm_clean") == "block" else None
    return CleanStream(block, config.get("ar_loss_weight") != 0)
