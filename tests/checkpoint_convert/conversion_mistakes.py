"""Mistakes in a source directory: from which shape it is made, the change, and words of the message."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from hugging_face_sources import (
    change_config,
    change_tensors,
    read_tensors,
    write_tensors,
)
from safetensors.torch import save_file

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
FP8_SCALE = "language_model.model.layers.1.self_attn.q_proj.weight_scale_inv"


def remove(*names: str) -> Callable[[Path], None]:
    return lambda source: [(source / name).unlink() for name in names] and None


def tensors(**change: torch.Tensor | None) -> Callable[[Path], None]:
    return lambda source: change_tensors(source, {name.replace("__", "."): value for name, value in change.items()})


def config(inside: tuple[str, ...] = (), **changes: object) -> Callable[[Path], None]:
    return lambda source: change_config(source, changes, inside)


def pickled(source: Path) -> None:
    """Weights whose reading would leave a mark."""
    (source / "model.safetensors").unlink()
    torch.save({"w": torch.ones(1)}, source / "pytorch_model.bin")


def truncated(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def not_safetensors(source: Path) -> None:
    torch.save({"w": torch.ones(100)}, source / "model.safetensors")


def duplicated_in_two_shards(source: Path) -> None:
    original = read_tensors(source)
    (source / "model.safetensors").unlink()
    write_tensors(source, original, shards=3)
    first = source / "model-00001-of-00003.safetensors"
    save_file({**read_tensors_of(first), Q_PROJ: original[Q_PROJ]}, first)
    second = source / "model-00002-of-00003.safetensors"
    save_file({**read_tensors_of(second), Q_PROJ: original[Q_PROJ]}, second)


def read_tensors_of(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(file))


def rewrite_header(source: Path, change: Callable[[str], str]) -> None:
    """Changes the text of a file's header."""
    path = source / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + size].decode().rstrip()).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def duplicated_in_one_file(source: Path) -> None:
    """Two entries of one name, which JSON allows."""
    k_proj, v_proj = (f"model.layers.1.self_attn.{name}_proj" for name in "kv")
    rewrite_header(source, lambda header: header.replace(k_proj, v_proj, 1))


def duplicated_in_one_file_alike(source: Path) -> None:
    """Two entries that mean the same bytes, which the library opens."""
    name = "model.norm.weight"
    rewrite_header(source, lambda header: f'{header[:-1]},"{name}":{json.dumps(json.loads(header)[name])}}}')


def missing_shard(source: Path) -> None:
    original = read_tensors(source)
    (source / "model.safetensors").unlink()
    write_tensors(source, original, shards=2)
    (source / "model-00002-of-00002.safetensors").unlink()


def single_file_and_shards(source: Path) -> None:
    write_tensors(source, read_tensors(source), shards=2)


def index(weight_map: dict[str, str]) -> Callable[[Path], None]:
    text = json.dumps({"weight_map": weight_map})
    return lambda source: (source / "model.safetensors.index.json").write_text(text) and None


ROPE = ("rope_parameters",)


def drop_head(source: Path) -> None:
    for file in source.glob("*.safetensors"):
        save_file({n: t for n, t in read_tensors_of(file).items() if n != "diffusion_head.weight"}, file)
    index_path = source / "model.safetensors.index.json"
    value = json.loads(index_path.read_text())
    del value["weight_map"]["diffusion_head.weight"]
    index_path.write_text(json.dumps(value))


MISTAKES: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "no config": ("untied", remove("config.json"), ("has no config.json",)),
    "no weights": ("untied", remove("model.safetensors"), ("has no weights",)),
    "config is no JSON": (
        "untied",
        lambda s: (s / "config.json").write_text("{") and None,
        ("config.json", "not JSON"),
    ),
    "config is a list": ("untied", lambda s: (s / "config.json").write_text("[]") and None, ("JSON object",)),
    "generation config is no JSON": (
        "untied",
        lambda s: (s / "generation_config.json").write_text("x") and None,
        ("generation_config.json",),
    ),
    "pickled weights": ("untied", pickled, ("pytorch_model.bin", "refused")),
    "truncated shard": ("untied", truncated, ("model.safetensors", "not a complete safetensors file")),
    "a shard that is a pickle": ("untied", not_safetensors, ("model.safetensors", "not a complete safetensors file")),
    "missing shard": ("untied", missing_shard, ("model-00002-of-00002.safetensors", "missing")),
    "index outside the directory": ("untied", index({"a": "../model.safetensors"}), ("../model.safetensors",)),
    "empty index": ("untied", index({}), ("weight_map",)),
    "index lists what is not there": (
        "untied",
        index({"model.none.weight": "model.safetensors"}),
        ("model.none.weight", "lacks"),
    ),
    "missing tensor": ("untied", tensors(**{Q_PROJ.replace(".", "__"): None}), ("missing tensor", Q_PROJ)),
    "missing embedding": ("untied", tensors(model__embed_tokens__weight=None), ("missing tensor", "embed_tokens")),
    "missing head of ours": ("nld", drop_head, ("missing tensor diffusion_head.weight",)),
    "extra tensor": ("untied", tensors(model__layers__1__extra=torch.ones(2)), ("extra tensor", "layers.1.extra")),
    "extra layer": (
        "untied",
        tensors(model__layers__2__input_layernorm__weight=torch.ones(40)),
        ("extra tensor", "layers.2"),
    ),
    "misshapen tensor": (
        "untied",
        tensors(**{Q_PROJ.replace(".", "__"): torch.ones(40, 120)}),
        (Q_PROJ, "[40, 120]", "[120, 40]"),
    ),
    "type": ("untied", tensors(model__norm__weight=torch.ones(40, dtype=torch.int32)), ("model.norm.weight", "I32")),
    "duplicated in two shards": ("untied", duplicated_in_two_shards, (Q_PROJ, "duplicated")),
    "duplicated in one file": ("untied", duplicated_in_one_file, ("layers.1.self_attn.v_proj.weight is duplicated",)),
    "duplicated bytes": ("untied", duplicated_in_one_file_alike, ("model.norm.weight is duplicated",)),
    "FP8 without scale": ("fp8", tensors(**{FP8_SCALE.replace(".", "__"): None}), ("missing tensor", FP8_SCALE)),
    "FP8 in blocks": ("fp8", tensors(**{FP8_SCALE.replace(".", "__"): torch.ones(2, 2)}), (FP8_SCALE, "per tensor")),
    "FP8 into nothing known": ("fp8", config(("text_config",), dtype="float8_e4m3fn"), ("float8_e4m3fn",)),
    "architecture": ("untied", config(architectures=["LlamaForCausalLM"]), ("LlamaForCausalLM", "supported:")),
    "no architecture": ("untied", config(architectures=None, model_type="llama"), ('"llama"', "supported:")),
    "text model of the wrapper": ("wrapper_tied", config(("text_config",), model_type="mistral"), ('"mistral"',)),
    "wrapper without text": ("wrapper_tied", config(text_config=None), ("text_config",)),
    "rope type": ("untied", config(ROPE, rope_type="llama3"), ('rope_type "llama3"', "default, yarn")),
    "rope setting": ("untied", config(ROPE, partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    "rope scaling that is off elsewhere": ("untied", config(ROPE, apply_yarn_scaling=False), ("apply_yarn_scaling",)),
    "rope value": ("untied", config(ROPE, factor=None), ("factor",)),
    "rope missing": ("untied", config(rope_parameters=None), ("rope_theta",)),
    "activation": ("untied", config(hidden_act="gelu"), ("hidden_act", "gelu")),
    "sliding window": ("untied", config(sliding_window=4096), ("sliding_window",)),
    "no head_dim": ("untied", config(head_dim=None), ("head_dim", "missing")),
    "groups": ("untied", config(num_key_value_heads=4), ("num_attention_heads=6", "num_key_value_heads=4")),
    "size": ("untied", config(hidden_size="40"), ("hidden_size",)),
    "mask token": ("nld", config(mask_token_id=67), ("mask_token_id 67", "correct it")),
    "mask token that is a truth value": ("nld", config(mask_token_id=True), ("mask_token_id True",)),
    "rope is a list": ("untied", config(rope_parameters=[1]), ("rope_parameters must be an object", "[1]")),
    "rope scaling is a name": (
        "untied",
        config(rope_parameters=None, rope_theta=1e4, rope_scaling="yarn"),
        ("rope_scaling must be an object", '"yarn"'),
    ),
    "rope factor": ("untied", config(ROPE, factor=0), ("factor must be a number above 0, but is 0",)),
    "rope length": ("untied", config(ROPE, original_max_position_embeddings=16.5), ("integer above 0, but is 16.5",)),
    "rope beta": ("untied", config(ROPE, beta_fast="a"), ('beta_fast must be a number above 0, but is "a"',)),
    "rope multiplier": ("untied", config(ROPE, mscale=-1), ("mscale must be a number of 0 or more, but is -1",)),
    "norm": ("untied", config(rms_norm_eps=math.nan), ("rms_norm_eps must be a number above 0, but is NaN",)),
    "number beyond all floats": ("untied", config(rms_norm_eps=10**400), ("rms_norm_eps must be a number above 0",)),
    "layer types": ("untied", config(layer_types=3), ("layer_types must be a list of names, but is 3",)),
    "architectures": ("untied", config(architectures="Llama"), ("architectures must be a list", '"Llama"')),
    "stop token": ("untied", config(eos_token_id=67), ("config.json: eos_token_id must be", "67, or a list", "is 67")),
    "one of several stop tokens": ("untied", config(eos_token_id=[2, -1]), ("eos_token_id must be", "[2, -1]")),
    "stop token of generation": (
        "untied",
        lambda s: (s / "generation_config.json").write_text('{"eos_token_id": "x"}') and None,
        ("generation_config.json: eos_token_id must be", '"x"'),
    ),
    "deeply nested config": (
        "untied",
        lambda s: (s / "config.json").write_text("[" * 200_000 + "]" * 200_000) and None,
        ("config.json: is nested too deeply",),
    ),
    "single file and shards": ("untied", single_file_and_shards, ("model.safetensors and", "model-00001-of-00002")),
}
