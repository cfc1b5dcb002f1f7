"""The alignment of rows for the flash kernels, with a stand-in that does what those kernels document: no mask but
padding, and causality that meets in the last query and the last key. The kernels themselves need a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "flash_attention_2"


def documented_flash(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    is_causal: bool,
    **_: Any,
) -> tuple[Tensor, None]:
    queries, keys = query.shape[2], key.shape[2]
    allowed = torch.ones(len(query), queries, keys, dtype=torch.bool)
    if mask is not None:
        assert mask.shape == (len(query), keys)
        allowed &= mask.bool()[:, None, :]
    if is_causal:
        allowed &= torch.ones(queries, keys).tril(keys - queries).bool()
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~allowed[:, None], float("-inf"))
    # A query of padding sees nothing; the kernels leave it out and return zeros.
    return (scores.softmax(-1).nan_to_num(0.0) @ value).transpose(1, 2), None


@pytest.fixture
def flash(load: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    model = load()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, IMPLEMENTATION, documented_flash)
    model.config._attn_implementation_internal = IMPLEMENTATION
    assert model.config._attn_implementation == IMPLEMENTATION
    return model


@torch.no_grad()
def test_causal_forward_and_block_decoding(flash: Any, model: Any, prompts: Any) -> None:
    ids, mask = prompts
    real = mask.bool()
    torch.testing.assert_close(flash(ids, mask).logits[real], model(ids, mask).logits[real], atol=1e-4, rtol=1e-4)
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
