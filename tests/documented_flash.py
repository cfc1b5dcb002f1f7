"""A stand-in that does what the flash kernels document: no mask but padding, and causality that meets in the last query
and the last key. The kernels themselves need a GPU."""

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


def install(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's attention becomes the stand-in."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, IMPLEMENTATION, documented_flash)
    model.config._attn_implementation_internal = IMPLEMENTATION
    assert model.config._attn_implementation == IMPLEMENTATION
