"""Rotary angles, query scale and RMSNorm against `transformers`, below and far beyond the original length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive
import pytest
import torch
from oracle import hugging_face_config, logits, pair, tiny_config
from tolerance import assert_close_to_rounding
from torch import Tensor
from transformers.models.ministral3.modeling_ministral3 import (
    Ministral3RMSNorm,
    Ministral3RotaryEmbedding,
    apply_rotary_pos_emb,
    get_llama_4_attn_scale,
)

from nld_train.config.compose import compose_config
from nld_train.config.schema import ModelConfig
from nld_train.errors import UserError
from nld_train.masking.layout import StreamLayout
from nld_train.model import streams
from nld_train.model.attention import core
from nld_train.model.build import transformer_config
from nld_train.model.compiled import CompiledFunction
from nld_train.model.rotary import RotaryEmbedding, compiled_rotation, inverse_frequencies, rotate, rotate_both
from nld_train.model.spec import RMSNorm
from nld_train.model.streams import StreamContext

CPU = torch.device("cpu")
POSITIONS = [0, 1, 4095, 16383, 16384, 32768, 100000, 262143]
ROPE = "model.rope_parameters"
MODELS = {
    "3b": ["model=3b"],
    "8b": ["model=8b"],
    "14b": ["model=14b"],
    # One released checkpoint has these.
    "factor 0.25, length 4096": ["model=8b", f"{ROPE}.factor=0.25", "model.max_position_embeddings=4096"],
    "unequal mscales": ["model=8b", f"{ROPE}.mscale=0.7"],
    "narrow ramp, odd heads": [
        "model=8b",
        f"{ROPE}.beta_fast=2.0",
        "model.head_dim=50",
        "model.num_attention_heads=24",
    ],
    "tiny, plain": ["model=tiny"],
}


def model_config(name: str) -> ModelConfig:
    return compose_config(MODELS[name]).model


@pytest.mark.parametrize("name", MODELS)
def test_cosines_and_sines_are_transformers(name: str) -> None:
    model = model_config(name)
    positions = torch.tensor([POSITIONS])
    expected = Ministral3RotaryEmbedding(hugging_face_config(model))(torch.zeros(1), positions)
    found = RotaryEmbedding(model, CPU).cosine_and_sine(positions, torch.float32)
    assert found[0].shape == (1, len(POSITIONS), model.head_dim)
    for got, want in zip(found, expected, strict=True):
        assert_close_to_rounding(got, want, 1)


@pytest.mark.parametrize("name", MODELS)
def test_frequencies_are_the_formula(name: str) -> None:
    model = model_config(name)
    rope = model.rope_parameters
    frequencies, _ = inverse_frequencies(model)
    if rope.rope_type == "default":
        expected = [rope.rope_theta ** (-2 * pair / model.head_dim) for pair in range(model.head_dim // 2)]
    else:
        settings: Any = (rope.factor, rope.original_max_position_embeddings, rope.beta_fast, rope.beta_slow)
        expected = naive.yarn_frequencies(model.head_dim, rope.rope_theta, *settings)
    assert frequencies.tolist() == pytest.approx(expected, rel=2e-6)


def test_equal_mscales_leave_cosines_alone_and_unequal_ones_do_not() -> None:
    assert inverse_frequencies(model_config("8b"))[1] == 1.0
    assert inverse_frequencies(model_config("factor 0.25, length 4096"))[1] == 1.0
    assert inverse_frequencies(model_config("unequal mscales"))[1] != 1.0


def test_the_14b_has_its_own_base() -> None:
    assert not torch.equal(inverse_frequencies(model_config("8b"))[0], inverse_frequencies(model_config("14b"))[0])


@pytest.mark.parametrize("name", ["3b", "8b", "14b"])
def test_the_query_scale_is_transformers(name: str) -> None:
    model = model_config(name)
    positions = torch.tensor([POSITIONS])
    scale = RotaryEmbedding(model, CPU).query_scale(positions, torch.float32)
    assert scale is not None
    torch.testing.assert_close(scale, get_llama_4_attn_scale(positions, 0.1, 16384)[:, 0, :, 0])
    assert scale[0].tolist() == pytest.approx(
        [naive.query_scale(position, 0.1, 16384) for position in POSITIONS], rel=1e-6
    )
    assert scale[0, :4].tolist() == [1.0] * 4
    assert scale[0, 4] > 1.06


def test_the_query_scale_is_left_out_where_it_is_one() -> None:
    rotary = RotaryEmbedding(model_config("8b"), CPU)
    assert rotary.query_scale(torch.arange(16384), torch.float32) is None
    assert rotary.query_scale(torch.tensor([3, 16384]), torch.float32) is not None
    assert RotaryEmbedding(model_config("tiny, plain"), CPU).query_scale(torch.tensor([10**6]), torch.float32) is None


def test_both_streams_get_the_angles_and_scales_of_positions_from_zero() -> None:
    """With an original length of 16, position 20 of either stream is beyond it and position 4 of none.

    The query scale beyond L: docs/method.md, "Known defects of public implementations".
    """
    model = tiny_config().model
    layout = StreamLayout.of(torch.zeros(1, 20, dtype=torch.int64), 6, two_streams=True)
    context = StreamContext.of(layout, RotaryEmbedding(model, CPU), torch.float32)
    assert context.query_scale is not None
    for tensor in (context.cosine, context.sine, context.query_scale):
        assert tensor.shape[0] == 40
        assert torch.equal(tensor[:20], tensor[20:])
    expected = [naive.query_scale(position, 0.1, 16) for position in range(20)] * 2
    assert context.query_scale.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    # So a sample of 2L = 40 positions must not reach the scale of position 32.
    assert context.query_scale.max() < naive.query_scale(32, 0.1, 16)


def test_rotation_is_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 5, 7, 24, generator=generator)  # [b, heads, S, head_dim]
    angles = torch.rand(3, 7, 12, generator=generator) * 6
    cosine, sine = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    expected = apply_rotary_pos_emb(query, key, cosine, sine)
    for heads, want in zip((query, key), expected, strict=True):
        torch.testing.assert_close(rotate(heads, cosine.unsqueeze(1), sine.unsqueeze(1)), want)


def rotated(function: Callable[..., Any], dtype: torch.dtype, scaled: bool, device: torch.device = CPU) -> list[Tensor]:
    """Rotated query and key, and the gradients of both, for positions that differ between rows."""
    generator = torch.Generator().manual_seed(0)
    config = model_config("8b")
    positions = torch.tensor([[0, 5], [1, 6], [2, 16384], [3, 40000]])  # [S, b]
    rotary = RotaryEmbedding(config, device)
    cosine, sine = (part.unsqueeze(2) for part in rotary.cosine_and_sine(positions, dtype))
    scale = rotary.query_scale(positions, dtype)
    assert scale is not None
    heads = [torch.randn(4, 2, count, config.head_dim, generator=generator).to(device, dtype) for count in (6, 2)]
    query, key = (part.requires_grad_() for part in heads)
    outputs = function(query, key, cosine, sine, scale[..., None, None] if scaled else None)
    (outputs[0].float().sum() + 2 * outputs[1].float().square().sum()).backward()
    assert query.grad is not None and key.grad is not None  # noqa: PT018 (for mypy)
    return [each.detach().cpu() for each in (*outputs, query.grad, key.grad)]


@pytest.mark.parametrize("scaled", [True, False])
def test_the_rotation_is_compiled_whole(scaled: bool) -> None:
    """Forward and backward, with the operations of plain torch."""
    compiled = CompiledFunction(rotate_both, "the rotary embedding", "execution.rotary", 2, backend="aot_eager")
    for found, wanted in zip(*(rotated(each, torch.float32, scaled) for each in (compiled, rotate_both)), strict=True):
        assert_close_to_rounding(found, wanted, 4)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(CPU, marks=pytest.mark.long),  # compiles
        pytest.param(
            torch.device("cuda"),
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
    ids=str,
)
def test_the_compiled_rotation_is_within_the_rounding_of_bf16(device: torch.device) -> None:
    """One kernel rounds once: it is nearer to the result in float32 than plain torch."""
    exact = rotated(rotate_both, torch.float32, True)
    plain = rotated(rotate_both, torch.bfloat16, True)
    compiled = rotated(compiled_rotation(), torch.bfloat16, True, device)
    for found, rounded, wanted in zip(compiled, plain, exact, strict=True):
        assert found.dtype == torch.bfloat16
        error, allowed = ((each.float() - wanted).norm() / wanted.norm() for each in (found, rounded))
        assert error <= 1.05 * allowed < 0.01


@pytest.mark.usefixtures("groups")
def test_passes_without_a_cache_take_the_compiled_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every layer; the query scale is passed on."""
    calls: list[Tensor | None] = []

    def recorded(*arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append(arguments[4])
        return rotate_both(*arguments)

    monkeypatch.setattr(core, "compiled_rotation", lambda: recorded)
    tokens, documents = torch.arange(20)[None], torch.zeros(1, 20, dtype=torch.int64)
    found = []
    for rotary in ("plain", "compiled"):
        config = tiny_config(execution__rotary=rotary)
        found.append(logits(config, pair(config)[0], tokens, documents, two_streams=False))
    streams.clear()
    assert len(calls) == 2
    assert all(scale is not None for scale in calls)
    assert torch.equal(*found)


def test_a_rope_type_that_changes_with_the_input_is_refused() -> None:
    import dataclasses

    model = model_config("8b")
    other = dataclasses.replace(model, rope_parameters=dataclasses.replace(model.rope_parameters, rope_type="dynamic"))
    with pytest.raises(UserError, match=r"model\.rope_parameters\.rope_type: 'dynamic' is not supported"):
        inverse_frequencies(other)


@pytest.mark.parametrize("epsilon", [1e-5, 0.2])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
@pytest.mark.usefixtures("groups")
def test_rms_norm_is_transformers(epsilon: float, size: float) -> None:
    """Small inputs show the epsilon, large ones the order of operations."""
    generator = torch.Generator().manual_seed(0)
    ours = RMSNorm(transformer_config(tiny_config(), CPU), 40, eps=epsilon)
    theirs = Ministral3RMSNorm(40, eps=epsilon)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(40, generator=generator))
        theirs.weight.copy_(ours.weight)
    hidden = size * torch.randn(5, 3, 40, generator=generator)
    assert_close_to_rounding(ours(hidden), theirs(hidden), 40)
