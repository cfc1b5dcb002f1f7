"""What the settings of a run select on its device, in words."""

from __future__ import annotations

import torch

from nld_train.config.schema import Config
from nld_train.losses.cross_entropy import resolve_head
from nld_train.model.build import resolve_dtype
from nld_train.model.rotary import resolve_rotary
from nld_train.model.spec import resolve_attention, resolve_layers
from nld_train.model.weight_gradients import adds_in_products


def kernels_in_words(config: Config, device: torch.device) -> str:
    """Layers, attention, rotary embedding, head and weight gradients: `local layers, flex attention, ...`."""
    layers, execution = resolve_layers(config.execution.layers, device), config.execution
    gradients = "added in the products" if adds_in_products(config, device) else "added after the products"
    return (
        f"{layers} layers, {resolve_attention(execution.attention, device)} attention, "
        f"{resolve_rotary(execution.rotary, device)} rotary embedding, "
        f"{resolve_head(execution.head, device, resolve_dtype(config, device))} head, weight gradients {gradients}"
    )
