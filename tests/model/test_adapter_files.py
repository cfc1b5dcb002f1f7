"""The files of a drafter adapter that someone else made."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import composed

from nld_train.config.schema import ModelConfig
from nld_train.errors import UserError
from nld_train.model.adapter_files import (
    CONFIG_FILE,
    TENSOR_FILE,
    AdapterShape,
    read_shape,
    read_tensors,
    tensor_names,
    write_adapter,
)


@pytest.fixture
def model() -> ModelConfig:
    return replace(composed().model, num_hidden_layers=2, hidden_size=8, num_attention_heads=2, head_dim=6)


@pytest.fixture
def adapter(model: ModelConfig, tmp_path: Path) -> Path:
    tensors = {}
    for layer in range(2):
        down, up = tensor_names(layer)
        tensors |= {down: torch.ones(4, 12), up: torch.ones(8, 4)}
    write_adapter(tmp_path, AdapterShape(4, 8.0), tensors)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": float("nan")}, "lora_alpha is missing or not a finite number"),
        ({"lora_alpha": 10**400}, "lora_alpha is missing or not a finite number"),
        ({"lora_alpha": True}, "lora_alpha is missing or not a finite number"),
        ({"r": True}, "r is missing or not an integer"),
        ({"r": 10**9}, "the adapter does not fit this model"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights is set to "pissa"'),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication is set to [[0, 1000000000]]"),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save is set to ["lm_head"]'),
        ({"bias": "all"}, 'bias is set to "all"'),
        ({"of_a_later_version": {"a": 1}}, 'of_a_later_version is set to {"a": 1}'),
    ],
)
def test_settings_that_would_change_the_adapter(
    adapter: Path, model: ModelConfig, changes: dict[str, Any], message: str
) -> None:
    path = adapter / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError) as found:
        read_shape(adapter, model)
    assert message in str(found.value)


def test_the_settings_that_peft_writes_are_read(adapter: Path, model: ModelConfig) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj"], inference_mode=True, lora_dropout=0.1)
    config.save_pretrained(adapter)
    assert read_shape(adapter, model) == AdapterShape(4, 8)
    assert read_tensors(adapter).keys() == {name for layer in range(2) for name in tensor_names(layer)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"r": ' + b"9" * 5000 + b"}", "has an integer of more than 4300 digits"),
        (b"[" * 10**5, "is nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"r": 4, "r": 5}', "r is duplicated"),
        (b"[]", "must be a JSON object, not list"),
    ],
    ids=["digits", "nested", "bytes", "twice", "list"],
)
def test_a_config_that_cannot_be_read(adapter: Path, model: ModelConfig, content: bytes, message: str) -> None:
    (adapter / CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError) as found:
        read_shape(adapter, model)
    assert str(found.value).startswith(f"{adapter / CONFIG_FILE}: {message}")


def test_tensors_that_are_a_pipe_or_of_integers(adapter: Path, model: ModelConfig) -> None:
    tensors = read_tensors(adapter)
    first = min(tensors)
    save_file({**tensors, first: tensors[first].int()}, adapter / TENSOR_FILE)
    with pytest.raises(UserError, match=r"has type I32; supported: F32, F16, BF16"):
        read_shape(adapter, model)
    (adapter / TENSOR_FILE).unlink()
    os.mkfifo(adapter / TENSOR_FILE)
    with pytest.raises(UserError, match="is not a regular file"):
        read_shape(adapter, model)


def test_a_billion_layers_do_not_take_a_minute(adapter: Path, model: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"layers\.2\.self_attn\.o_proj\.lora_A\.weight has shape none"):
        read_shape(adapter, replace(model, num_hidden_layers=10**9))
