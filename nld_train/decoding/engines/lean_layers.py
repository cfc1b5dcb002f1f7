"""Megatron's layers without their training overhead: the same modules and weights, fewer calls per forward.

A forward over one token consists of small products; Megatron's autograd functions, recomputation branches and profiler
ranges take most of its time. Inside `lean` the layers of a model without tensor parallelism do only the arithmetic. The
replacements compute the same as the modules; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from nld_train.decoding.engines.megatron_cache import CachedContext
from nld_train.model.attention.core import Ministral3SelfAttention
from nld_train.model.head import Head
from nld_train.model.streams import lookup


@contextmanager
def lean(model: nn.Module) -> Iterator[None]:
    """The model's local layers run lean inside the context; Transformer Engine's and tensor-parallel ones do not."""
    config: Any = model.config
    if config.tensor_model_parallel_size > 1 or config.add_bias_linear:
        yield
        return
    changed = [module for module in model.modules() if (forward := _lean_forward(module)) and _set(module, forward)]
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own is visible again


def _set(module: nn.Module, forward: Callable[..., Any]) -> bool:
    module.forward = forward
    return True


def _lean_forward(module: Any) -> Callable[..., Any] | None:
    """The replacement of a module's `forward`; None for no replacement."""
    # Subclasses may compute something else: Transformer Engine's do.
    if type(module) in (ColumnParallelLinear, RowParallelLinear, Head):
        return partial(_linear, module)
    if type(module) is MLP:
        return partial(_mlp, module)
    if type(module) is Ministral3SelfAttention and type(module.linear_qkv) is ColumnParallelLinear:
        return partial(_attention, module)
    if type(module) is TransformerLayer and type(module.mlp) is MLP:
        return partial(_layer, module)
    return None


def _linear(module: Any, rows: Tensor, weight: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
    return F.linear(rows, module.weight if weight is None else weight), None


def _attention(module: Any, hidden: Tensor, attention_mask: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Query heads and the key of a group lie side by side in the product, and are rotated together."""
    context = lookup(attention_mask)
    assert isinstance(context, CachedContext)
    groups = module.num_query_groups_per_partition
    mixed = module.linear_qkv(hidden)[0].unflatten(-1, (groups, -1, module.hidden_size_per_attention_head))
    turned = context.rotated(mixed[..., :-1, :])
    query, key, value = turned[..., :-1, :], turned[..., -1, :], mixed[..., -1, :]
    if context.query_scale is not None:
        query = query * context.query_scale.unsqueeze(-1)
    output = context.attend_groups(module.layer_number, query, key, value)
    projected = module.linear_proj(output)[0]
    if module.adapter is not None and context.adapted is not None:
        projected = projected + module.adapter(output, context.adapted)
    return projected, None


def _mlp(module: Any, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
    gate, up = module.linear_fc1(hidden)[0].chunk(2, dim=-1)
    return module.linear_fc2(F.silu(gate) * up)[0], None


def _layer(module: Any, hidden_states: Tensor, attention_mask: Tensor, **_: Any) -> tuple[Tensor, None]:
    hidden = hidden_states + module.self_attention(module.input_layernorm(hidden_states), attention_mask)[0]
    return hidden + module.mlp(module.pre_mlp_layernorm(hidden))[0], None
