"""An attention backend that the product does not have: everything that one has to bring, in a file of its own."""

from __future__ import annotations

from torch import Tensor

from nld_train.masking.visibility import dense_mask
from nld_train.model.streams import StreamContext

calls: list[int] = []


def attend(query: Tensor, key: Tensor, value: Tensor, context: StreamContext) -> Tensor:
    """All scores, one product after another."""
    calls.append(query.shape[2])
    repeats = query.shape[1] // key.shape[1]
    keys, values = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
    scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.masked_fill(~dense_mask(context.layout), float("-inf")).softmax(-1) @ values
