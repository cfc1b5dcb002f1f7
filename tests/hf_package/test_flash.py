"""The alignment of rows for the flash kernels, with a stand-in for them."""

from __future__ import annotations

from typing import Any

import documented_flash
import pytest
import torch
from tolerance import assert_close_to_rounding, forward_additions


@pytest.fixture
def flash(load: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    model = load()
    documented_flash.install(model, monkeypatch)
    return model


@torch.no_grad()
def test_causal_forward_and_block_decoding(flash: Any, model: Any, prompts: Any) -> None:
    ids, mask = prompts
    real = mask.bool()
    found, expected = (one(ids, mask).logits[real] for one in (flash, model))
    assert_close_to_rounding(found, expected, forward_additions(model.config, 12))
    for call, settings in (
        ("ar_generate", {}),
        ("linear_spec_generate", {"block_length": 5}),
        ("generate", {"block_length": 5, "threshold": 0.4}),
    ):
        found, expected = (getattr(one, call)(ids, 13, attention_mask=mask, **settings) for one in (flash, model))
        assert torch.equal(found[0], expected[0]), call
        assert found[1] == expected[1]


def test_the_rest_is_refused_in_one_line(flash: Any, prompts: Any) -> None:
    ids, mask = prompts
    packed = torch.tensor([[0, 1, 2, 0, 1]])
    for call in (
        lambda: flash(ids, mask, labels=ids),
        lambda: flash(ids, mask, mode="block"),
        lambda: flash(ids[:1, :5], position_ids=packed),
        lambda: flash.quadratic_spec_generate(ids, 5, attention_mask=mask),
    ):
        with pytest.raises(
            ValueError, match="attn_implementation: 'flash_attention_2' cannot do this forward"
        ) as error:
            call()
        assert "\n" not in str(error.value)
