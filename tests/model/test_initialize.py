"""Starting weights: a function of the seed alone, of the right size, and nothing left unfilled."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import build, tiny_config

from nld_train.config.schema import Config
from nld_train.model.build import transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.spec import block_spec

pytestmark = pytest.mark.usefixtures("groups")


def wide_config(layers: int = 3) -> Config:
    return tiny_config(
        model__hidden_size=96,
        model__intermediate_size=160,
        model__num_hidden_layers=layers,
        model__vocab_size=301,
        model__initializer_range=0.02,
    )


def initialized(config: Config, seed: int, model: Ministral3Model | None = None) -> dict[str, torch.Tensor]:
    """The filled parameters; they hold NaN before, so that one left out shows."""
    model = model or build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    initialize([model], config.model, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_every_parameter_is_filled_and_the_seed_decides() -> None:
    config = wide_config()
    first, again, other = (initialized(config, seed) for seed in (1, 1, 2))
    for name, weight in first.items():
        assert weight.isfinite().all(), name
        assert torch.equal(weight, again[name]), name
        assert torch.equal(weight, other[name]) == (weight.dim() == 1), name


def test_other_random_numbers_do_not_matter_and_are_not_disturbed() -> None:
    config = wide_config()
    torch.manual_seed(3)
    first, drawn = initialized(config, 1), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    again = initialized(config, 1)
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())


def test_matrices_are_normal_with_the_given_deviation_and_less_into_the_residual() -> None:
    config = wide_config()
    for name, weight in initialized(config, 1).items():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        expected = 0.02 / math.sqrt(2 * 3) if residual else 0.02
        count = weight.numel()
        assert float(weight.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * count)), name
        assert abs(float(weight.mean())) < 4 * expected / math.sqrt(count), name
        kurtosis = float(((weight / weight.std()) ** 4).mean())
        assert kurtosis == pytest.approx(3, abs=4 * math.sqrt(24 / count)), name


def test_the_deviation_is_the_settings() -> None:
    config = tiny_config(model__initializer_range=0.5)
    weights = initialized(config, 1)
    assert float(weights["embedding.word_embeddings.weight"].std()) == pytest.approx(0.5, rel=0.1)


def test_no_two_tensors_and_no_two_layers_share_their_draws() -> None:
    weights = [weight.flatten()[:500] for weight in initialized(wide_config(), 1).values() if weight.dim() == 2]
    related = torch.corrcoef(torch.stack(weights)) - torch.eye(len(weights))
    assert related.abs().max() < 5 / math.sqrt(500)


def test_gate_and_up_are_drawn_apart() -> None:
    fc1 = initialized(wide_config(), 1)["decoder.layers.0.mlp.linear_fc1.weight"]
    gate, up = fc1.chunk(2)
    assert abs(float(torch.corrcoef(torch.stack([gate.flatten(), up.flatten()]))[0, 1])) < 5 / math.sqrt(gate.numel())


def padded_model(config: Config, padding: int) -> Ministral3Model:
    """A model whose tables have rows beyond the vocabulary, as where it is cut over more processes."""
    device = torch.device("cpu")
    megatron = transformer_config(config, device)
    return Ministral3Model(
        config=megatron,
        transformer_layer_spec=block_spec(megatron, "local", "chunked", "plain"),
        vocab_size=config.model.vocab_size,
        padded_vocab_size=config.model.vocab_size + padding,
        chunk_rows=16,
        max_sequence_length=32,
    )


def test_padding_rows_are_zero_and_change_no_other_row() -> None:
    config = wide_config()
    plain, padded = initialized(config, 1), initialized(config, 1, padded_model(config, 3))
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert padded[name].shape[0] == 304
        assert not padded[name][301:].any()
        assert torch.equal(padded[name][:301], plain[name])


def test_starting_weights_are_the_same_under_another_number_of_layers_but_for_the_residual() -> None:
    """A tensor is drawn from its own name, so nothing before it in the model stirs it."""
    deep, flat = initialized(wide_config(), 1), initialized(wide_config(layers=1), 1)
    for name, weight in flat.items():
        scale = math.sqrt(3) if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 1.0
        torch.testing.assert_close(weight, deep[name] * scale)
