"""Small Hugging Face directories of every kind that can be imported, and the values of their tensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# No two sizes are equal, heads x head_dim is not the width, and the vocabulary needs padding under TP2.
TEXT = {
    "model_type": "ministral3",
    "vocab_size": 67,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 3e-5,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 11,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "rope_parameters": {
        "type": "yarn",
        "rope_type": "yarn",
        "rope_theta": 12345.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "max_position_embeddings": 256,
        "beta_fast": 30.0,
        "beta_slow": 1.5,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "llama_4_scaling_beta": 0.1,
    },
}
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 11, "temperature": 0.15}
PREFIXES = {
    "wrapper": "language_model.model.",
    "new_wrapper": "model.language_model.",
    "plain": "model.",
    "nld": "encoder.",
}
HEADS = {
    "wrapper": "language_model.lm_head.weight",
    "new_wrapper": "lm_head.weight",
    "plain": "lm_head.weight",
    "nld": "diffusion_head.weight",
}
_ARCHITECTURES = {
    "wrapper": "Mistral3ForConditionalGeneration",
    "new_wrapper": "Mistral3ForConditionalGeneration",
    "plain": "Ministral3ForCausalLM",
    "nld": "NemotronLabsDiffusionModel",
}
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


@dataclass(frozen=True)
class Source:
    """A kind of directory."""

    name: str
    kind: str = "plain"
    tied: bool = False
    dtype: torch.dtype = torch.bfloat16
    shards: int = 1
    fp8: bool = False

    def config(self) -> dict[str, Any]:
        text = copy.deepcopy(TEXT) | {"dtype": _DTYPE_NAMES[self.dtype]}
        if self.kind == "nld":
            text |= {"model_type": "nemotron_labs_diffusion", "mask_token_id": 66, "block_size": 16}
            text |= {
                "dlm_paradigm": "bidirectional",
                "dlm_loss_weight": 0.25,
                "ar_loss_weight": 0.5,
                "tie_word_embeddings": False,
            }
        config: dict[str, Any] = text
        if "wrapper" in self.kind:
            # The outer flag contradicts what is there, as in released checkpoints.
            config = {"model_type": "mistral3", "text_config": text, "vision_config": {"hidden_size": 16}}
            config["tie_word_embeddings"] = not self.tied
        if self.fp8:
            config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": None}
        return {"architectures": [_ARCHITECTURES[self.kind]], **config}

    def full_name(self, name: str) -> str:
        return HEADS[self.kind] if name == "head.weight" else PREFIXES[self.kind] + name


SOURCES = (
    Source("untied"),
    Source("tied", tied=True),
    Source("fp32", dtype=torch.float32),
    Source("fp16", dtype=torch.float16),
    Source("sharded", shards=3),
    Source("wrapper_tied", kind="wrapper", tied=True),
    Source("wrapper_untied", kind="wrapper", shards=2),
    Source("wrapper_of_transformers_5", kind="new_wrapper", tied=True),
    Source("fp8", kind="wrapper", fp8=True),
    Source("nld", kind="nld", shards=2),
)


def shapes(text: dict[str, Any] = TEXT) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by its name without prefix."""
    hidden, inner, vocabulary = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    queries, keys = (text[f"num_{kind}_heads"] * text["head_dim"] for kind in ("attention", "key_value"))
    found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(text["num_hidden_layers"]):
        for name, shape in (
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (queries, hidden)),
            ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)),
            ("self_attn.o_proj", (hidden, queries)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (inner, hidden)),
            ("mlp.up_proj", (inner, hidden)),
            ("mlp.down_proj", (hidden, inner)),
        ):
            found[f"layers.{layer}.{name}.weight"] = shape
    return found | {"norm.weight": (hidden,), "head.weight": (vocabulary, hidden)}


def write_source(directory: Path, source: Source, text: dict[str, Any] = TEXT) -> dict[str, Tensor]:
    """Writes a directory; returns the values of its tensors, dequantised, by name without prefix."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(source.name))
    stored: dict[str, Tensor] = {}
    meaning: dict[str, Tensor] = {}
    for name, shape in shapes(text).items():
        values = torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        values = (values + (len(shape) == 1)).to(source.dtype)
        full = source.full_name(name)
        if source.fp8 and "_proj" in name:
            scale = 0.01 + 0.001 * len(stored)
            stored[full] = (values.float() / scale).to(torch.float8_e4m3fn)
            stored[f"{full}_scale_inv"] = torch.tensor(scale)
            stored[full.replace(".weight", ".activation_scale")] = torch.tensor(0.5)
            values = (stored[full].float() * torch.tensor(scale)).to(source.dtype)
        elif not (source.tied and name == "head.weight"):
            stored[full] = values
        meaning[name] = values
    if source.tied:
        meaning["head.weight"] = meaning["embed_tokens.weight"]
    write_tensors(directory, stored | _vision(source), source.shards)
    config = source.config()
    config.get("text_config", config).update({key: text[key] for key in TEXT if key != "model_type"})
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    (directory / "tokenizer.json").write_text('{"version": "1.0", "model": {"vocab": {"a": 20}}}')
    (directory / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return meaning


def _vision(source: Source) -> dict[str, Tensor]:
    prefix = {"wrapper": "", "new_wrapper": "model."}.get(source.kind)
    if prefix is None:
        return {}
    return {
        f"{prefix}vision_tower.ln_pre.weight": torch.ones(16),
        f"{prefix}multi_modal_projector.norm.weight": torch.ones(4),
    }


def write_tensors(directory: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """As one file, or as shards with an index."""
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        stored = {name: tensors[name] for name in names[shard::shards]}
        save_file(stored, directory / file)
        weight_map |= dict.fromkeys(stored, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of all safetensors files."""
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def change_tensors(directory: Path, change: dict[str, Tensor | None]) -> None:
    """Replaces, adds or (None) removes tensors of a single file."""
    tensors = {**read_tensors(directory), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, directory / "model.safetensors")


def change_config(directory: Path, changes: dict[str, Any], inside: Iterable[str] = ()) -> None:
    """Changes keys of `config.json`, in a dictionary `inside` it; None removes a key."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    target = config
    for key in inside:
        target = target[key]
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
    path.write_text(json.dumps(config))


def larger(text: dict[str, Any], **sizes: int) -> dict[str, Any]:
    """The same model with other sizes."""
    return {**copy.deepcopy(text), **sizes}


def named(name: str) -> Source:
    """A source of the list."""
    return next(source for source in SOURCES if source.name == name)
