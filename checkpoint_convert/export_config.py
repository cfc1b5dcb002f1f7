"""The `config.json` and `generation_config.json` of an export."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.checkpoints import Record, Run
from checkpoint_convert.hf_package import AUTO_MAP, VISION_AUTO_MAP
from checkpoint_convert.source_rope import keeps_lengths, rope_parameters
from nld_train.config.schema import ModelConfig, StageConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.config.vision_settings import projector_settings, vision_settings
from nld_train.decoding.policies.threshold import THRESHOLD

# Of the paper's joint stages (docs/method.md, "Objective").
ALPHA = 0.3
_TERM_WEIGHTS = {"ar_loss_weight": 1.0, "dlm_loss_weight": ALPHA}

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        name: of the export.
        output_format: `nld` or `ministral3`.
        dtype: name of the type of the weights.
        tied: whether the head is omitted because it equals the embedding.
        tokenizer: directory of the tokenizer; None for the one recorded with the checkpoint.
        license: identifier of the license in the model card; None for that of the original model.
        languages: codes of its languages in the model card; empty for those of the original model.
        lora: whether a LoRA is beside the weights, and not added to them.
    """

    name: str
    output_format: str
    dtype: str
    tied: bool
    tokenizer: Path | None
    license: str | None
    lora: bool = False
    languages: tuple[str, ...] = ()


def decoder_config(model: ModelConfig, origin_rope: dict[str, Any] | None = None) -> dict[str, Any]:
    """The keys of a `Ministral3Config`, without `tie_word_embeddings`.

    Args:
        model: the model.
        origin_rope: `rope_parameters` of the original model in their original form; None if the model's differ.
    """
    values = asdict(model)
    for key in ("name", "mask_token_id", "rope_parameters", "vision"):
        del values[key]
    return {
        **values,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "sliding_window": None,
        "use_cache": True,
        "rope_parameters": origin_rope or _rope(model),
    }


def _rope(model: ModelConfig) -> dict[str, Any]:
    """`transformers` always computes Ministral3's query scale, so a model without one gets a slope of 0."""
    rope = {key: value for key, value in asdict(model.rope_parameters).items() if value is not None}
    rope.setdefault("llama_4_scaling_beta", 0.0)
    rope.setdefault("original_max_position_embeddings", model.max_position_embeddings)
    return rope


def export_config(record: Record, model: ModelConfig, export: Export) -> dict[str, Any]:
    """`config.json` of an export.

    Args:
        record: the records of the checkpoint.
        model: its model.
        export: what is exported.
    """
    config = decoder_config(model, _origin_rope(record, model))
    if record.origin is not None:
        # A `ModelConfig` has one stop token; the original model may have a list.
        ids = record.origin.text
        config |= {key: ids[key] for key in _TOKEN_IDS if _begins_with(ids.get(key), config[key])}
    shared = {"dtype": export.dtype, "tie_word_embeddings": export.tied}
    shared |= {"transformers_version": _transformers_version()}
    if export.output_format == "ministral3":
        text = {"model_type": "ministral3", **config, **_for_servers(config["rope_parameters"]), **shared}
        if model.vision is None:
            return {"architectures": ["Ministral3ForCausalLM"], **text}
        named = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
        return {**named, "text_config": text, **vision_keys(model), **shared}
    vision = model.vision is not None
    return {
        "architectures": ["NemotronLabsDiffusionVLMModel" if vision else "NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion_vlm" if vision else "nemotron_labs_diffusion",
        "auto_map": VISION_AUTO_MAP if vision else AUTO_MAP,
        **config,
        **vision_keys(model),
        **shared,
        "mask_token_id": model.mask_token_id,
        **_diffusion(record),
    }


def vision_keys(model: ModelConfig) -> dict[str, Any]:
    """The keys of `config.json` that describe a vision tower and its projector, as in a Mistral3 wrapper."""
    vision = model.vision
    if vision is None:
        return {}
    tower = {**vision_settings(vision), "rope_theta": vision.rope_theta}
    others = {key: getattr(vision, key) for key in ("image_break_token_id", "image_end_token_id")}
    return {"vision_config": tower, **projector_settings(vision), **others}


def _for_servers(rope: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters`, and the keys from which vLLM and SGLang read them; `transformers` does not read these keys.

    vLLM takes the query scale from `llama_4_scaling` and multiplies cosines and sines unless `apply_yarn_scaling` is
    false. SGLang takes the length of the query scale from the top level, 16384 without it.
    """
    found: dict[str, Any] = {"rope_parameters": rope}
    if rope.get("factor") and keeps_lengths(rope):
        found["rope_parameters"] = {**rope, "apply_yarn_scaling": False}
    if beta := rope["llama_4_scaling_beta"]:
        length = {"original_max_position_embeddings": rope["original_max_position_embeddings"]}
        found |= {**length, "llama_4_scaling": {"beta": beta, **length}}
    return found


def vllm_positions(model: ModelConfig) -> int | None:
    """How many positions vLLM can serve, if they are fewer than the model has; else None.

    Of yarn, vLLM 0.32.0 tabulates cosines and sines for `factor x original_max_position_embeddings` positions, and
    reads past the end of that table (`YaRNScalingRotaryEmbedding`). `transformers` computes them for every position.
    """
    rope = model.rope_parameters
    if rope.rope_type != "yarn":
        return None
    factor, length = rope.factor, rope.original_max_position_embeddings
    assert factor is not None, "yarn has a factor"
    assert length is not None, "yarn has a length"
    positions = math.ceil(factor * length)
    return positions if positions < model.max_position_embeddings else None


def _begins_with(ids: Any, first: int) -> bool:
    return isinstance(ids, list) and ids[:1] == [first]


def _origin_rope(record: Record, model: ModelConfig) -> dict[str, Any] | None:
    """`rope_parameters` of the original model, if the model was trained with them and `transformers` can use them."""
    if record.origin is None:
        return None
    same = rope_parameters(record.origin.directory / "config.json", record.origin.text) == model.rope_parameters
    given = record.origin.text.get("rope_parameters")
    if not given or given.get("llama_4_scaling_beta") is None or not given.get("original_max_position_embeddings"):
        return None
    return dict(given) if same else None


def _diffusion(record: Record) -> dict[str, Any]:
    """Settings of the objective: of its newest runs, else of the original model, else the paper's."""
    origin = record.origin.outer if record.origin is not None else {}
    found = {key: origin.get(key, default) for key, default in _TERM_WEIGHTS.items()}
    found |= {key: origin[key] for key in ("dlm_blocks", "dlm_fill") if key in origin}
    if stages := [stage for run in record.runs for stage in _objectives(run)]:
        found["dlm_loss_weight"] = stages[0].alpha
    if (newest := record.newest_stage) is not None:
        found["ar_loss_weight"] = newest[1].ar_weight
    if (run := record.chat_run) is not None:
        found |= {"dlm_blocks": run.config.diffusion.blocks, "dlm_fill": run.config.diffusion.fill}
    clean = "causal" if record.clean_stream.block is None else "block"
    return {"block_size": record.block_size, "dlm_paradigm": "bidirectional", "dlm_clean": clean, **found}


def _objectives(run: Run) -> list[StageConfig]:
    """The stages of a run whose alpha an export has, the last first.

    Stages on conversations are among them even where alpha is 0: who goes on with an AR-only control gets its
    objective.
    """
    stages = [run.config.stages[name] for name in reversed(run.stages_begun)]
    return [each for each in stages if kind_of(each).noisy_stream or kind_of(each).data == "conversations"]


def stages_begun(record: Record) -> tuple[str, ...]:
    """Names of the run's stages up to the one that wrote the checkpoint."""
    return record.runs[0].stages_begun if record.config is not None else ()


def generation_config(
    record: Record, model: ModelConfig, output_format: str, turn_ends: tuple[int, ...] = ()
) -> dict[str, Any]:
    """`generation_config.json`: that of the original model, with its stop tokens, else one with the model's ids.

    Args:
        record: the records of the checkpoint.
        model: its model.
        output_format: `nld`, whose file also says how the model decodes, or `ministral3`.
        turn_ends: tokens that end an answer of a model that was trained on conversations; they become stop tokens too.
    """
    found: dict[str, Any] = {key: getattr(model, key) for key in _TOKEN_IDS}
    found |= {"transformers_version": _transformers_version()}
    if record.origin is not None and record.origin.generation:
        found = dict(record.origin.generation)
    if turn_ends:
        named = found.get("eos_token_id")
        own = named if isinstance(named, list) else [] if named is None else [named]
        ends = list(dict.fromkeys([*own, model.eos_token_id, *turn_ends]))
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if "do_sample" not in found and any(_samples(found.get(key), usual) for key, usual in _SAMPLING.items()):
        # Else `transformers` refuses to save the model again, after a fine-tuning of hours.
        found["do_sample"] = True
    decoding = _decoding(record)
    if output_format == "nld":
        # Blocks may have another size now.
        return {**decoding, **found, "max_denoising_steps": record.block_size}
    return {key: value for key, value in found.items() if key not in decoding}


# Keys of a generation config for sampling, and values that change nothing.
_SAMPLING: dict[str, tuple[Any, ...]] = {"temperature": (None, 1, 0), "top_p": (None, 1), "top_k": (None, 0, 50)}


def _samples(value: Any, usual: tuple[Any, ...]) -> bool:
    return value not in usual


def _decoding(record: Record) -> dict[str, Any]:
    """How `generate` decodes unless it is told, and the keys that vLLM reads to decode by diffusion."""
    return {
        "decoding_mode": "ar",
        "diffusion_selection_policy": "confidence_threshold",
        "diffusion_confidence_threshold": THRESHOLD.default,
        "max_denoising_steps": record.block_size,
    }


def _transformers_version() -> str:
    from importlib.metadata import version

    return version("transformers")
