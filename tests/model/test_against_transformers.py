"""The whole model against `transformers`' Ministral3 on the same weights, in one stream and in two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle import in_megatron_layout, logits, oracle_logits, pair, tiny_config
from tolerance import assert_close_to_rounding, forward_additions, gradient_additions
from torch import Tensor
from transformers import Ministral3ForCausalLM

from nld_train.config.schema import Config
from nld_train.model import streams
from nld_train.model.ministral3 import Ministral3Model

pytestmark = pytest.mark.usefixtures("groups")
NO_YARN: dict[str, Any] = {
    "model__rope_parameters__rope_type": "default",
    **{
        f"model__rope_parameters__{key}": None
        for key in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "yarn": {},
    "yarn, factor 0.25": {"model__rope_parameters__factor": 0.25},
    "yarn, two different mscales": {"model__rope_parameters__mscale": 1.5},
    "plain rotary, query scale": NO_YARN,
    "plain rotary alone": {
        **NO_YARN,
        "model__rope_parameters__llama_4_scaling_beta": None,
        "model__rope_parameters__original_max_position_embeddings": None,
    },
    "large norm epsilon": {"model__rms_norm_eps": 0.3},
    "one group per head, three layers": {"model__num_key_value_heads": 6, "model__num_hidden_layers": 3},
    "one group for all heads, a wide residual": {"model__num_key_value_heads": 1, "model__hidden_size": 200},
}
DOCUMENTS = [[0] * 50, [0] * 9 + [1] * 20 + [2] * 21]


@pytest.fixture(autouse=True)
def forget_contexts() -> Iterator[None]:
    yield
    streams.clear()


def random_tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    """Ids from 1: `transformers` gives no gradient to the embedding of the padding id 0."""
    return torch.randint(1, 67, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_ar_forward_is_transformers_causal_model(variant: str) -> None:
    """50 positions, with an original length of 16: below it, beyond it, and at four values of the query scale.

    None of these shapes is a released one (docs/method.md, "Known defects of public implementations").
    """
    config = tiny_config(**VARIANTS[variant])
    ours, theirs = pair(config)
    tokens = random_tokens(2, 50)
    found = logits(config, ours, tokens, torch.zeros(2, 50, dtype=torch.int64), two_streams=False)
    expected = theirs(tokens).logits
    assert expected.std() > 0.5  # an almost constant model would agree with anything
    assert_close_to_rounding(found, expected, forward_additions(config.model, 50))


@pytest.mark.parametrize("two_streams", [False, True])
@pytest.mark.parametrize("attention", ["dense", "chunked", "flex", "split", "decomposed"])
@torch.no_grad()
def test_packed_documents_and_two_streams_are_its_model_under_a_naive_mask(attention: str, two_streams: bool) -> None:
    config = tiny_config(execution__attention=attention, diffusion__block_size=6)
    ours, theirs = pair(config)
    tokens = random_tokens(2, 100 if two_streams else 50)
    found = logits(config, ours, tokens, torch.tensor(DOCUMENTS), two_streams)
    expected = oracle_logits(theirs, tokens, DOCUMENTS, 6, two_streams)
    assert_close_to_rounding(found, expected, forward_additions(config.model, 100))


@torch.no_grad()
def test_the_oracle_tells_wrong_positions_from_right_ones() -> None:
    """Positions 0..2L-1 give other logits, so that the agreement above means something.

    A defect of public implementations (docs/method.md, "Known defects of public implementations").
    """
    config = tiny_config(diffusion__block_size=6)
    ours, theirs = pair(config)
    tokens = random_tokens(1, 100)
    found = logits(config, ours, tokens, torch.zeros(1, 50, dtype=torch.int64), two_streams=True)
    same = oracle_logits(theirs, tokens, [[0] * 50], 6, two_streams=True)
    shifted = oracle_logits(theirs, tokens, [[0] * 50], 6, two_streams=True, positions=lambda row, index: index + 50)
    assert_close_to_rounding(found, same, forward_additions(config.model, 100))
    # Rotary angles are relative, so the shift shows in the query scale alone.
    assert (found - shifted).abs().max() > 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"model__rope_parameters__llama_4_scaling_beta": None},
        {"model__rope_parameters__factor": 8.0},
        {"model__rope_parameters__rope_theta": 2e4},
        {"model__rms_norm_eps": 1e-2},
        NO_YARN,
    ],
)
@torch.no_grad()
def test_every_setting_reaches_the_model(wrong: dict[str, Any]) -> None:
    """The same weights under another setting must not agree, or the tests above could not fail."""
    right, other = tiny_config(), tiny_config(**wrong)
    _, theirs = pair(right)
    ours, _ = pair(other)
    tokens = random_tokens(1, 50)
    found = logits(other, ours, tokens, torch.zeros(1, 50, dtype=torch.int64), two_streams=False)
    assert (found - theirs(tokens).logits).abs().max() > 1e-3


@torch.no_grad()
def test_the_ar_stage_knows_positions() -> None:
    """Without rotary embedding one causal layer could not tell the order of earlier tokens.

    A defect of public implementations (docs/method.md, "Known defects of public implementations").
    """
    config = tiny_config(model__num_hidden_layers=1)
    ours, _ = pair(config)
    tokens = random_tokens(1, 12)
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    documents = torch.zeros(1, 12, dtype=torch.int64)
    first, second = (logits(config, ours, each, documents, two_streams=False)[0, -1] for each in (tokens, swapped))
    assert (first - second).abs().max() > 1e-3


def test_gradients_of_two_streams_are_transformers() -> None:
    config = tiny_config(diffusion__block_size=6)
    ours, theirs = pair(config)
    tokens = random_tokens(2, 100)
    direction = torch.randn(2, 100, 67, generator=torch.Generator().manual_seed(4)) / 100
    (logits(config, ours, tokens, torch.tensor(DOCUMENTS), True) * direction).sum().backward()
    (oracle_logits(theirs, tokens, DOCUMENTS, 6, True) * direction).sum().backward()
    assert_same_gradients(config, ours, theirs)


ATTENTION, MLP = "core_attn", "mlp"


@pytest.mark.parametrize(
    ("recompute", "modules", "layers"),
    [
        ("none", ATTENTION, 1),
        ("selective", ATTENTION, 1),
        ("selective", MLP, 1),
        ("full", ATTENTION, 1),
        ("full", ATTENTION, 2),
    ],
)
def test_recomputation_changes_no_gradient(recompute: str, modules: str, layers: int) -> None:
    config = tiny_config(
        execution__recompute=recompute,
        execution__recompute_modules=f"[{modules}]",
        execution__recompute_layers=layers,
        diffusion__block_size=6,
    )
    ours, theirs = pair(config)
    ours.train()
    passes, others = [], []
    for layer in ours.decoder.layers:
        layer.self_attention.core_attention.register_forward_hook(lambda *_: passes.append(1))
        layer.mlp.linear_fc1.register_forward_hook(lambda *_: others.append(1))
    tokens = random_tokens(2, 100)
    (logits(config, ours, tokens, torch.tensor(DOCUMENTS), True)[:, ::3] ** 2).mean().backward()
    (oracle_logits(theirs, tokens, DOCUMENTS, 6, True)[:, ::3] ** 2).mean().backward()
    assert_same_gradients(config, ours, theirs)
    again = {"none": "", "selective": modules, "full": f"{ATTENTION},{MLP}"}[recompute].split(",")
    assert len(passes) == config.model.num_hidden_layers * (2 if ATTENTION in again else 1)
    assert len(others) == config.model.num_hidden_layers * (2 if "mlp" in again else 1)


def assert_same_gradients(config: Config, ours: Ministral3Model, theirs: Ministral3ForCausalLM) -> None:
    """Each tensor's gradient, measured against its largest element."""
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = in_megatron_layout(config.model, gradients)
    scales = {name: gradient.abs().max() for name, gradient in expected.items()}
    assert all(scale > 0 for scale in scales.values())
    for name, parameter in ours.named_parameters():
        assert_close_to_rounding(parameter.grad, expected[name], gradient_additions(config.model, 100, rows=200))


def test_embedding_and_head_are_two_tensors() -> None:
    """The head is untied, so nothing may couple it to the embedding.

    A defect of public implementations (docs/method.md, "Known defects of public implementations").
    """
    config = tiny_config()
    ours, theirs = pair(config)
    embedding, head = ours.embedding.word_embeddings.weight, ours.output_layer.weight
    assert embedding.data_ptr() != head.data_ptr()
    assert torch.equal(head, theirs.lm_head.weight)
    assert not torch.equal(embedding, head)
    documents = torch.zeros(1, 8, dtype=torch.int64)
    logits(config, ours, random_tokens(1, 8), documents, two_streams=False).logsumexp(-1).sum().backward()
    assert not torch.equal(embedding.grad, head.grad)
