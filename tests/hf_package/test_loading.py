"""The export works where this project is not: a process that cannot import it, and cannot reach any network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_exports import STOP, random_weights, write_adapter, write_export
from tiny_shape import MASK

from checkpoint_convert.hf_package import ENTRY_FILES, package_files

SCRIPT = """
import importlib.abc, json, socket, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nld_train", "checkpoint_convert", "megatron", "hydra", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

def refuse(*_):
    raise OSError("no network in this test")

socket.socket.connect = refuse
socket.getaddrinfo = refuse

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

torch.set_num_threads(1)
directory = sys.argv[1]
ids, mask = (torch.tensor(rows) for rows in json.loads(sys.argv[2]))
config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
answers = {"block_size": config.block_size}
for name, auto in {"model": AutoModel, "causal": AutoModelForCausalLM}.items():
    model = auto.from_pretrained(directory, trust_remote_code=True)
    assert model.training is False
    calls = {
        "ar": model.ar_generate(ids, 10, attention_mask=mask),
        "diffusion": model.generate(ids, 10, 4, 0.5, attention_mask=mask),
        "plain": model.linear_spec_generate(ids, 10, 4, adapter=False, attention_mask=mask),
        "drafted": model.linear_spec_generate(ids, 10, 4, attention_mask=mask),
    }
    answers[name] = {call: [out.tolist(), nfe] for call, (out, nfe) in calls.items()}
    answers[name]["logits"] = model(ids, attention_mask=mask).logits.sum().item()
print(json.dumps(answers))
"""


def test_a_process_without_this_project(export: Path, model: Any, prompts: Any, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    arguments = [sys.executable, "-c", SCRIPT, str(export), json.dumps([rows.tolist() for rows in prompts])]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    ids, mask = prompts
    expected = {
        "ar": model.ar_generate(ids, 10, attention_mask=mask),
        "diffusion": model.generate(ids, 10, 4, 0.5, attention_mask=mask),
        "plain": model.linear_spec_generate(ids, 10, 4, adapter=False, attention_mask=mask),
        "drafted": model.linear_spec_generate(ids, 10, 4, attention_mask=mask),
    }
    for name in ("model", "causal"):
        for call, (out, nfe) in expected.items():
            assert answers[name][call] == [out.tolist(), nfe], call
        assert answers[name]["ar"][0] == answers[name]["plain"][0] == answers[name]["drafted"][0]
    assert answers["block_size"] == 8


def test_the_package_is_flat_and_self_contained() -> None:
    files = package_files()
    assert set(ENTRY_FILES) <= set(files)
    for name, source in files.items():
        assert "/" not in name
        for forbidden in ("nld_train.", "megatron", "checkpoint_convert."):
            assert f"import {forbidden}" not in source, name
            assert f"from {forbidden}" not in source, name


def test_every_tensor_has_its_name(model: Any) -> None:
    expected = random_weights()
    state = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_a_saved_model_loads_again(load: Any, model: Any, prompts: Any, tmp_path: Path) -> None:
    """Saved after drafting with the adapter, which is not part of the saved weights."""
    ids, mask = prompts
    first = load()
    first.linear_spec_generate(ids, 6, 4, attention_mask=mask)
    first.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("adapter*"))
    again = load(tmp_path / "again")
    assert torch.equal(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
    assert again.stop_tokens() == (STOP,)
    assert again.config.mask_token_id == MASK
    assert torch.equal(again.ar_generate(ids, 6)[0], model.ar_generate(ids, 6)[0])


def test_half_precision_loads(load: Any, prompts: Any) -> None:
    ids, mask = prompts
    half = load(dtype=torch.bfloat16)
    assert half(ids, attention_mask=mask).logits.dtype == torch.bfloat16
    assert half.ar_generate(ids, 3, attention_mask=mask)[0].shape == (3, 15)


def test_the_adapter_is_saved_with_the_model(load: Any, export: Path, prompts: Any, tmp_path: Path) -> None:
    """Loaded from another directory, from the model's own, or not loaded at all: saved unchanged."""
    other = write_adapter(tmp_path / "other")
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 8'))
    unused, used, replaced = load(), load(), load()
    assert used.drafter() is not None
    replaced.load_drafter(other)
    for name, (model, source) in {
        "unused": (unused, export / "linear_spec_lora"),
        "used": (used, export / "linear_spec_lora"),
        "replaced": (replaced, other),
    }.items():
        model.save_pretrained(tmp_path / name)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / name / "linear_spec_lora" / file).read_bytes() == (source / file).read_bytes()
    ids, mask = prompts
    settings = {"mode": "linear", "max_new_tokens": 20, "block_length": 6, "attention_mask": mask, "adapter": True}
    again = load(tmp_path / "used")
    assert again.decode(ids, **settings).accepted == used.decode(ids, **settings).accepted
    again.save_pretrained(tmp_path / "used")
    used.save_pretrained(tmp_path / "rank_1", is_main_process=False)
    assert not (tmp_path / "rank_1" / "linear_spec_lora").exists()


def test_a_model_without_adapter_is_saved_without(load: Any, tmp_path: Path) -> None:
    load(write_export(tmp_path / "plain")).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "linear_spec_lora").exists()


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_attention_functions_of_servers_are_refused(export: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They register a name of their own, and build the model from its config."""
    from transformers import AttentionInterface, AutoConfig, AutoModel

    interface = AttentionInterface._global_mapping
    monkeypatch.setitem(interface, server, interface["sdpa"])
    config = AutoConfig.from_pretrained(export, trust_remote_code=True)
    config._attn_implementation = server
    with pytest.raises(ValueError, match=f"attn_implementation: '{server}' cannot run this class; `python serve.py`"):
        AutoModel.from_config(config, trust_remote_code=True)
