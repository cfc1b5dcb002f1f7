"""Settings that an earlier version wrote beside its checkpoints: read in the terms of this version."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from nld_train.config import saved
from nld_train.config.compose import compose_config
from nld_train.config.load import config_to_dict, config_to_yaml
from nld_train.config.saved import read_saved_config, with_current_keys
from nld_train.config.schema import Config

THREE_STAGES = ("stages=[quickstart,drafter]", "run.stages=[ar,joint,drafter]")
# `config.yaml` of a run of these stages as revision 333d147 wrote it.
EARLIER = """\
run:
  name: quickstart
  dir: runs/quickstart
  seed: 1234
  stages:
  - ar
  - joint
  - drafter
  max_steps: null
  dry: false
  plan_world_size: 1
init:
  checkpoint: null
  required: false
model:
  name: tiny
  hidden_size: 128
  intermediate_size: 384
  num_hidden_layers: 4
  num_attention_heads: 4
  num_key_value_heads: 2
  head_dim: 32
  vocab_size: 260
  max_position_embeddings: 1024
  rms_norm_eps: 1.0e-05
  initializer_range: 0.02
  mask_token_id: 3
  bos_token_id: 1
  eos_token_id: 2
  pad_token_id: 0
  rope_parameters:
    rope_type: default
    rope_theta: 10000.0
    factor: null
    original_max_position_embeddings: null
    beta_fast: null
    beta_slow: null
    mscale: null
    mscale_all_dim: null
    llama_4_scaling_beta: null
data:
  train:
  - prefix: data/stdlib/stdlib-train
    weight: 1.0
  validation:
  - prefix: data/stdlib/stdlib-validation
    weight: 1.0
  tokenizer: data/stdlib/tokenizer
  documents: isolate
  workers: 0
diffusion:
  block_size: 16
  epsilon: 0.001
  levels: independent
  level_scope: sequence
stages:
  ar:
    tokens: 750000
    alpha: 0.0
    averaging: global
    schedule:
      learning_rate: 0.003
      final_learning_rate: 0.0002
      warmup_fraction: 0.05
      decay_fraction: 0.2
      decay_style: linear
    train: null
    data_start: continue
    adapter: null
  joint:
    tokens: 2000000
    alpha: 0.3
    averaging: global
    schedule:
      learning_rate: 0.003
      final_learning_rate: 0.0002
      warmup_fraction: 0.05
      decay_fraction: 0.2
      decay_style: linear
    train: null
    data_start: continue
    adapter: null
  drafter:
    tokens: 1000000000
    alpha: 0.0
    averaging: global
    schedule:
      learning_rate: 0.0001
      final_learning_rate: 1.0e-05
      warmup_fraction: 0.01
      decay_fraction: 0.2
      decay_style: linear
    train: null
    data_start: continue
    adapter:
      rank: 128
      alpha: 512.0
      block_length: 32
      temperature: 3.0
      top_k: 200
      greedy_share: 0.1
batch:
  global_size: 8
  micro_size: 4
  sequence_length: 256
parallel:
  tensor: 1
  pipeline: 1
  virtual_pipeline: null
  sequence: false
  context: 1
  overlap_grad_reduce: false
  overlap_param_gather: false
  overlap_tensor: false
optimizer:
  beta1: 0.9
  beta2: 0.95
  epsilon: 1.0e-08
  weight_decay: 0.1
  clip_grad: 1.0
  precision_aware: false
  moments: fp32
  cpu_offload: 0.0
execution:
  device: auto
  precision: auto
  layers: auto
  attention: auto
  fp8: none
  fp8_recipe: tensorwise
  compile: none
  head_chunk_rows: 2048
  recompute: none
  recompute_modules:
  - core_attn
  recompute_layers: 1
  timeout_minutes: 30.0
checkpoint:
  every: 100
  asynchronous: true
  keep_last: 2
  keep_every: null
validation:
  every: 200
  samples: 32
  levels:
  - 0.25
  - 0.5
  - 0.75
  - 1.0
evaluation:
  every: 400
  modes:
  - ar
  - diffusion
  - linear
  - quadratic
  prompts: 8
  prompt_tokens: 128
  max_new_tokens: 64
  block_length: 16
  threshold: 0.9
logging:
  every: 1
  peak_tflops: null
  wandb:
    mode: offline
    project: nld-train
    entity: null
"""


@pytest.fixture(scope="module")
def now() -> Config:
    # It printed every step, which was the default then, its stages were longer and its random weights smaller.
    then = ("logging.every=1", "stages.ar.tokens=750000", "stages.joint.tokens=2000000", "model.initializer_range=0.02")
    return compose_config([*THREE_STAGES, *then])


def test_settings_of_an_earlier_version_are_those_of_now(now: Config) -> None:
    assert read_saved_config(EARLIER, now) == now


def test_kinds_and_renamed_keys_need_no_help_from_the_settings_of_now() -> None:
    """Current settings without these stages, whose first one is of another kind and has an adapter."""
    stages = read_saved_config(EARLIER, compose_config(["stages=drafter"])).stages
    assert {name: stage.kind for name, stage in stages.items()} == {"ar": "ar", "joint": "joint", "drafter": "drafter"}
    adapter = stages["drafter"].adapter
    assert adapter is not None
    assert (adapter.rank, adapter.lora_alpha, adapter.block_size) == (128, 512.0, 32)
    assert stages["ar"].adapter is stages["joint"].adapter is None


def test_what_ablations_changed_since_was_not_so_before() -> None:
    ablated = ["stages.joint.ar_weight=0", "diffusion.clean=block", "evaluation.modes=[diffusion]"]
    found = read_saved_config(EARLIER, compose_config(ablated))
    assert {stage.ar_weight for stage in found.stages.values()} == {1.0}
    assert found.diffusion.clean == "causal"


def test_settings_of_now_are_left_as_they_are(now: Config) -> None:
    settings = config_to_dict(now)
    assert with_current_keys(settings) == settings
    assert read_saved_config(config_to_yaml(now), compose_config()) == now


def test_a_kind_that_was_saved_is_not_derived_again(now: Config) -> None:
    settings = config_to_dict(now)
    settings["stages"]["joint"]["kind"] = "drafter"
    assert with_current_keys(settings) == settings


def test_a_key_may_move_to_another_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also into one that is not there yet; a value under the current name is kept, and nothing given is changed."""
    monkeypatch.setattr(saved, "RENAMED", {"old.*.a": "new.*.deep.b", "plain": "other.plain"})
    monkeypatch.setattr(saved, "DERIVED", {"new.*.c": lambda beside: beside["deep"]["b"] + 1})
    settings: dict[str, Any] = {"old": {"x": {"a": 1}, "y": {"a": 2}, "z": 3}, "plain": 5, "other": {"plain": 6}}
    before = yaml.safe_dump(settings)
    found = with_current_keys(settings)
    assert found["new"] == {"x": {"deep": {"b": 1}, "c": 2}, "y": {"deep": {"b": 2}, "c": 3}}
    assert found["old"] == {"x": {}, "y": {}, "z": 3}
    assert found["other"] == {"plain": 6}
    assert yaml.safe_dump(settings) == before


@pytest.mark.parametrize("stages", [None, [], {"ar": None}, {"ar": {"alpha": "many"}}, {"ar": {"adapter": 3}}])
def test_settings_that_are_none_are_left_to_the_types_check(stages: Any) -> None:
    """`config_from_dict` refuses them by name."""
    with_current_keys({"stages": stages})
