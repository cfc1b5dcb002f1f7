"""Lean layers compute what Megatron's do, and are gone afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import TINY_MODEL
from tolerance import assert_close_to_rounding, forward_additions

from nld_train.config.compose import compose_config
from nld_train.decoding.engines import lean_layers
from nld_train.decoding.engines.engine import Step
from nld_train.decoding.engines.megatron_engine import MegatronEngine
from nld_train.model.ministral3 import Ministral3Model

# Of the tiny model, with at most 16 tokens in the cache and the block.
ADDITIONS = forward_additions(compose_config([*TINY_MODEL]).model, 16)


def logits(engine: MegatronEngine) -> torch.Tensor:
    """Of steps of every kind: a prefill of unequal rows, single tokens together and apart, blocks."""
    generator = torch.Generator().manual_seed(0)
    found = []
    engine.allocate(3, 40)
    for cached, counts, causal in (
        ([0, 0, 0], [7, 4, 9], True),
        ([7, 4, 9], [1, 1, 1], True),
        ([8, 5, 10], [5, 3, 5], False),
        ([5, 5, 5], [1, 1, 1], True),
        ([6, 6, 6], [4, 4, 4], True),
        ([6, 6, 6], [4, 4, 4], False),
    ):
        sizes = torch.tensor(counts)
        step = Step(
            tokens=torch.randint(4, 60, (3, max(counts)), generator=generator),
            positions=torch.tensor(cached)[:, None] + torch.arange(max(counts)),
            counts=sizes,
            cached=torch.tensor(cached),
            causal=torch.full((3,), causal),
        )
        real = torch.arange(max(counts)) < sizes[:, None]
        found.append(engine.forward(step)[real].flatten())
    return torch.cat(found)


def test_the_same_logits(megatron_engine: MegatronEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with megatron_engine.decoding():
        lean = logits(megatron_engine)
    monkeypatch.setattr(lean_layers, "_lean_forward", lambda module: None)
    with megatron_engine.decoding():
        plain = logits(megatron_engine)
    assert plain.std() > 0.3
    assert_close_to_rounding(lean, plain, ADDITIONS)


def test_layers_are_lean_inside_and_themselves_outside(megatron_engine: MegatronEngine) -> None:
    (chunk,) = megatron_engine.chunks

    def changed(model: Ministral3Model) -> int:
        return sum("forward" in vars(module) for module in model.modules())

    assert changed(chunk) == 0
    with megatron_engine.decoding():
        # Per layer four products, attention, the MLP and the layer itself; and the head.
        assert changed(chunk) == 7 * len(chunk.decoder.layers) + 1
    assert changed(chunk) == 0
