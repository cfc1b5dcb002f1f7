"""An export runs where this project is not installed, and decodes what this project decodes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_environment import make_environment

from checkpoint_convert.exporting import export_checkpoint
from nld_train.decoding import DecodeOptions
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.load import find_source
from nld_train.decoding.policies.threshold import Threshold
from nld_train.model.adapter_files import AdapterShape, tensor_names, write_adapter

NEW, BLOCK, PAD = 24, 6, 0
SCRIPT = Path(__file__).with_name("decode_an_export.py")
PROMPTS = ("one tree stands near the o", "the river", "fal")


@pytest.fixture(scope="module")
def export(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with an adapter that changes drafts."""
    folder = tmp_path_factory.mktemp("fresh")
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for layer in range(2):
        down, up = tensor_names(layer)
        tensors |= {down: torch.randn(4, 120, generator=generator), up: torch.randn(40, 4, generator=generator) / 4}
    write_adapter(folder / "adapter", AdapterShape(4, 16), tensors)
    export_checkpoint(trained, folder / "export", "nld", adapter=folder / "adapter", report=lambda _: None)
    return folder / "export"


@pytest.fixture(scope="module")
def prompts(export: Path) -> list[list[int]]:
    tokenizer = find_source(export).tokenizer
    return [tokenizer(text).input_ids for text in PROMPTS]


@pytest.fixture(scope="module")
def answers(export: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the export decodes in an environment of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return decoded_elsewhere(folder, export, prompts, "torch", "transformers", "safetensors", "peft")


def decoded_elsewhere(folder: Path, export: Path, prompts: list[list[int]], *packages: str) -> dict[str, Any]:
    """The same in any environment; the prompts are padded on the left."""
    python = make_environment(folder / "environment", *packages)
    longest = max(map(len, prompts))
    ids = [[PAD] * (longest - len(row)) + row for row in prompts]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in prompts]
    request = {"ids": ids, "mask": mask, "new": NEW, "block": BLOCK}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    # -I: neither this directory nor the user's own packages.
    command = [str(python), "-I", str(SCRIPT), str(export), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def new_tokens(answer: dict[str, Any], prompts: list[list[int]]) -> list[list[int]]:
    """What follows the padded prompts, with its own padding."""
    return [row[max(map(len, prompts)) :] for row in answer["ids"]]


def padded(rows: list[list[int]]) -> list[list[int]]:
    """As the export pads what it returns."""
    return [row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows]


@pytest.mark.long
def test_nothing_of_this_project_is_there(answers: dict[str, Any]) -> None:
    for name in ("nld-train", "megatron-core", "hydra-core", "datasets", "wandb"):
        assert name not in answers["distributions"]
    for name in ("torch", "transformers", "safetensors", "peft"):
        assert name in answers["distributions"]
    assert not {"nld_train", "checkpoint_convert", "megatron"} & set(answers["modules"])
    assert {"peft", "safetensors"} <= set(answers["modules"])
    assert answers["text"] == PROMPTS[0]


@pytest.mark.long
def test_without_peft_everything_but_the_adapter_works(
    answers: dict[str, Any], export: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    found = decoded_elsewhere(tmp_path, export, prompts, "torch", "transformers", "safetensors")
    assert "peft" not in found["distributions"]
    for mode in ("ar", "diffusion", "linear"):
        assert found[mode] == answers[mode]
    assert found["refusal"] == f"the drafter adapter in {export / 'linear_spec_lora'} needs the package peft"
    assert answers["refusal"] is None


@pytest.mark.long
@pytest.mark.parametrize("mode", ["ar", "diffusion", "linear"])
def test_the_export_decodes_what_megatron_decodes(
    mode: Any, answers: dict[str, Any], prompts: list[list[int]], trained: Path
) -> None:
    source = find_source(trained)
    options = DecodeOptions(NEW, BLOCK, stop_tokens=source.stop_tokens)
    with source.open() as engine:
        expected = decode(engine, prompts, mode, options, Threshold(0.5) if mode == "diffusion" else None)
    assert padded(expected.token_ids) == new_tokens(answers[mode], prompts)
    # The first token, the write of the last block, or the prefill.
    assert answers[mode]["nfe"] == expected.forwards + 1
    # Neither the same in each row nor one token throughout: a text that could go wrong.
    assert len({tuple(row) for row in expected.token_ids}) == 3
    assert len(set(expected.token_ids[0])) > 2


@pytest.mark.long
def test_the_adapter_drafts_there_as_here(answers: dict[str, Any], prompts: list[list[int]], export: Path) -> None:
    source = find_source(export)
    options = DecodeOptions(NEW, BLOCK, stop_tokens=source.stop_tokens, adapter=True)
    with source.open() as engine:
        found = decode(engine, prompts, "linear", options)
    answer = answers["linear with adapter"]
    assert padded(found.token_ids) == new_tokens(answer, prompts) == new_tokens(answers["ar"], prompts)
    assert answer["nfe"] == found.forwards + found.prefill != answers["linear"]["nfe"]
