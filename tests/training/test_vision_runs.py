"""Runs of a vision-language model: resumed to the last bit, started from text and tower, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_samples import PictureSamples
from pictures import vision_override
from run_equality import assert_same_run
from safetensors.torch import save_file
from tiny_runs import (
    SHORT,
    SHORT_STEP_TOKENS,
    TINY_MODEL,
    composed,
    data_overrides,
    newest_checkpoint,
    saved_tensors,
    short_stages,
    train_here,
    write_token_set,
)

from checkpoint_convert.export_config import vision_keys
from nld_train.config.schema import Config
from nld_train.config.vision_tensors import MODULE, is_vision_key, vision_tensors
from nld_train.data.samples import training_samples
from nld_train.errors import UserError
from nld_train.training.loop import run

STEPS = 2
VISION = f"model.vision={vision_override()}"
LENGTH = 24


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    prefix = write_token_set(tmp_path_factory.mktemp("vision-data") / "train", seed=1)
    return (*TINY_MODEL, *data_overrides(prefix), *SHORT, *short_stages(STEPS, STEPS))


@pytest.fixture
def _with_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(config: Config, *of_text: Any) -> Any:
        return training_samples(config, *of_text) if config.model.vision is None else PictureSamples(config)

    monkeypatch.setattr(run, "training_samples", samples)


@pytest.mark.usefixtures("_with_pictures")
def test_a_run_is_resumed_to_the_last_bit(settings: tuple[str, ...], tmp_path: Path) -> None:
    """The projector first, then all weights, each stopped in its middle."""
    own = (*settings, VISION, "stages.ar.trained_weights=projector")
    whole = train_here(tmp_path / "whole", *own)
    tensors = saved_tensors(newest_checkpoint(whole))
    assert any(is_vision_key(name) for name in tensors)
    for stop in (1, STEPS, STEPS + 1, 2 * STEPS):
        train_here(tmp_path / "stopped", *own, f"run.max_steps={stop}")
    assert_same_run(tmp_path / "stopped", whole)
    with pytest.raises(UserError, match=r"stages\.ar\.trained_weights: all does not continue"):
        train_here(tmp_path / "stopped", *settings, VISION)


def write_tower(directory: Path, config: Config) -> dict[str, torch.Tensor]:
    """A multimodal directory of another text model, of which the tower and the projector are wanted."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(7)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in vision_tensors(config.model)}
    hidden, inner = config.model.hidden_size, 24
    text = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 4, "vocab_size": 67, "max_position_embeddings": 64}
    text |= {"rms_norm_eps": 1e-5, "model_type": "ministral3"}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    outer: dict[str, Any] = {"architectures": ["Mistral3ForConditionalGeneration"], **vision_keys(config.model)}
    (directory / "config.json").write_text(json.dumps({**outer, "text_config": {**text, "rope_parameters": rope}}))
    shapes = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (8, hidden),
        "self_attn.k_proj": (4, hidden),
        "self_attn.v_proj": (4, hidden),
        "self_attn.o_proj": (hidden, 8),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    prefix = "language_model.model."
    others = {f"{prefix}layers.0.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    others |= {f"{prefix}embed_tokens.weight": torch.zeros(67, hidden), f"{prefix}norm.weight": torch.zeros(hidden)}
    save_file({**tensors, **others}, directory / "model.safetensors")
    return tensors


@pytest.mark.usefixtures("_with_pictures")
def test_a_text_model_and_a_tower_make_a_vision_language_model(settings: tuple[str, ...], tmp_path: Path) -> None:
    """A learning rate of nearly 0 leaves the weights that a run starts with."""
    text = train_here(tmp_path / "text", *settings, "run.stages=[joint]", "run.max_steps=1")
    frozen = [f"stages.joint.schedule.{name}=1e-30" for name in ("learning_rate", "final_learning_rate")]
    start = (*settings, *frozen, "run.stages=[joint]", "run.max_steps=1", f"init.checkpoint={text}")
    tower = write_tower(tmp_path / "tower", composed(*settings, VISION))
    with pytest.raises(UserError, match=r"init.checkpoint: .* is a text model, and model.vision needs a vision tower"):
        train_here(tmp_path / "none", *start, VISION)
    both = train_here(tmp_path / "both", *start, VISION, f"init.vision={tmp_path / 'tower'}")
    found, before = (saved_tensors(newest_checkpoint(directory)) for directory in (both, text))
    for name, tensor in tower.items():
        assert torch.equal(found[MODULE + name], tensor), name
    weights = [name for name in before if name.startswith(("embedding.", "decoder.", "output_layer."))]
    assert len(weights) >= 9
    for name in weights:
        assert torch.equal(found[name], before[name]), name
    other = vision_override(hidden_size=40)
    with pytest.raises(UserError, match=r"init.vision: .* has model.vision.hidden_size=32, and the run 40"):
        train_here(tmp_path / "none", *start, f"model.vision={other}", f"init.vision={tmp_path / 'tower'}")


def test_pictures_without_a_tower_and_tokens_without_pictures(
    settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tower = composed(*settings, VISION)
    monkeypatch.setattr(run, "training_samples", lambda *_: PictureSamples(with_tower))
    with pytest.raises(UserError, match=r"model.vision=null: the data has pictures, which need a tower"):
        train_here(tmp_path / "none", *settings, "run.max_steps=1")

    class Lost(PictureSamples):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "pictures": []}

    monkeypatch.setattr(run, "training_samples", lambda *_: Lost(with_tower))
    with pytest.raises(UserError, match=r"have \d+ \[IMG\] tokens \(id 10\), but their 0 pictures need 0"):
        train_here(tmp_path / "lost", *settings, VISION, "run.max_steps=1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stages.joint.trained_weights=text",), "trained_weights=text: must be all: the model has no vision tower"),
        (("init.vision=somewhere",), "init.vision=somewhere: needs model.vision"),
        ((VISION, "parallel.context=2"), "parallel.context=2: must be 1"),
        ((f"model.vision={vision_override(hidden_size=20)}",), "axial rotary embedding needs a multiple of 4"),
        ((f"model.vision={vision_override(image_token_id=900)}",), "model.vision.image_token_id=900: must lie in"),
        ((f"model.vision={vision_override(image_token_id=12)}",), "must differ from model.mask_token_id"),
        ((f"model.vision={vision_override(image_size=7)}",), "must be at least 8, a merged patch"),
    ],
)
def test_impossible_settings(
    settings: tuple[str, ...], tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as found:
        train_here(tmp_path, *settings, *overrides)
    assert message in str(found.value)


def test_steps_count_the_tower() -> None:
    """A picture of 64 x 64 pixels: 256 patches."""
    from nld_train.config.vision_tensors import picture_flops

    config = composed(*TINY_MODEL, VISION)
    stage = config.stages["joint"]
    tower = 256 * (3 * 16 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 44)) + 2 * 256**2 * 32 * 2
    projector = 64 * (32 * 128 + 32 * 32 + 32 * 32)
    assert picture_flops(config.model, stage, 1000) == 6 * (tower + projector)
    assert SHORT_STEP_TOKENS == 4 * LENGTH
    few = picture_flops(config.model, stage, 16)
    assert few < picture_flops(config.model, stage, 64) / 4
