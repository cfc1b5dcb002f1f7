"""The attention modules of a layer: self-attention with Ministral3's positions, and its core."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from nld_train.config.attention_backends import ATTENTION_BACKENDS
from nld_train.model.attention.gather import with_all_keys
from nld_train.model.rotary import compiled_rotation, rotate_both
from nld_train.model.streams import Attend, StreamContext, lookup


@cache
def backend(name: str) -> Attend:
    """The `attend` function of a backend, by its name in `ATTENTION_BACKENDS`."""
    found = ATTENTION_BACKENDS[name]
    module, _, function = found.attend.partition(":")
    attend: Attend = getattr(import_module(module), function)
    return with_all_keys(attend) if found.context_parallel and not found.selected_keys else attend


def make_masks(name: str, context: StreamContext, device: torch.device) -> None:
    """Makes what all layers share of a micro-batch before its forward pass, for a backend that has such a function.

    It is called `make_masks` and is in the module of `attend`, which calls it too: masks are made only once.
    """
    module = import_module(ATTENTION_BACKENDS[name].attend.partition(":")[0])
    make: Callable[[StreamContext, torch.device], None] | None = getattr(module, "make_masks", None)
    if make is not None:
        make(context, device)


class TwoStreamAttention(torch.nn.Module):
    """Core attention: passes Megatron's tensors and the micro-batch's context to a backend.

    Args:
        attention_backend: name of the backend.
        layer_number: of the layer in the whole model, from 1.
        **_: Megatron's other arguments for core attention, which are not used.
    """

    def __init__(self, attention_backend: str, layer_number: int, **_: Any) -> None:
        super().__init__()
        self.attend = backend(attention_backend)
        self.layer_number = layer_number

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        """`[S, b, heads, head_dim]`, twice `[S, b, groups, head_dim]`, and a handle -> `[S, b, heads * head_dim]`."""
        query, key, value = (heads.permute(1, 2, 0, 3) for heads in (query, key, value))
        output = lookup(attention_mask).attend(self.attend, self.layer_number, query, key, value)
        return output.permute(2, 0, 1, 3).flatten(2)


class Ministral3SelfAttention(SelfAttention):
    """Self-attention with rotary embedding and query scale at the positions of the micro-batch's streams.

    Replaces only Megatron's `forward`, whose positions are indices in the whole sequence, 0..2L-1 with two streams;
    projections, tensor parallelism and recomputation are Megatron's. `adapter` is the layer's drafter adapter, `lora`
    the changes of its linear layers (see `model.adapters`), or None.

    Args:
        *arguments: Megatron's.
        rotary: `compiled` or `plain`, for passes without a KV cache; the shapes of others are many.
        **named: Megatron's.
    """

    def __init__(self, *arguments: Any, rotary: str = "plain", **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.rotary = rotary
        self.register_module("adapter", None)
        self.register_module("lora", None)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """From `[S, b, h]` (or its sequence-parallel shard) and the handle to `[S, b, h]` and a bias (None)."""
        context = lookup(attention_mask)
        query, key, value = self.get_query_key_value_tensors(hidden_states, None)
        compiled = self.rotary == "compiled" and isinstance(context, StreamContext)
        rotation = compiled_rotation() if compiled else rotate_both
        query, key = rotation(query, key, context.cosine, context.sine, context.query_scale)
        if self.checkpoint_core_attention and self.training:
            output = self._checkpointed_attention_forward(
                query, key, value, attention_mask, attn_mask_type=self.attn_mask_type
            )
        else:
            output = self.core_attention(query, key, value, attention_mask)
        projected, bias = self.linear_proj(output)
        if self.adapter is not None and context.adapted is not None:
            projected = projected + self.adapter(output, context.adapted)
        return projected, bias
