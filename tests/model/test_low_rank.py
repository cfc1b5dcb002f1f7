"""What a low-rank change is given where a linear layer has the norm before it inside, as Transformer Engine's has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from nld_train.model.low_rank import _Adding


def test_the_inputs_of_a_change_are_normalised_as_those_of_the_product() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, scale = torch.randn(3, 2, 8, generator=generator), torch.rand(8, generator=generator)
    output = torch.zeros(3, 2, 8)
    lora: Any = SimpleNamespace(
        config=SimpleNamespace(layernorm_epsilon=1e-5), _modules={"down_proj": lambda rows: 2 * rows}
    )
    add = _Adding(lora, ("down_proj",))
    normalised = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale
    found, bias = add(SimpleNamespace(layer_norm_weight=scale), (hidden,), (output, None))
    assert bias is None
    torch.testing.assert_close(found, 2 * normalised)
    torch.testing.assert_close(add(SimpleNamespace(), (hidden,), (output, None))[0], 2 * hidden)
