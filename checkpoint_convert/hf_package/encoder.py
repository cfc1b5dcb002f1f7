"""Ministral3's decoder layers with attention under an `AttentionMask`.

Norms, MLP and rotary embedding are those of `transformers`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.ministral3.modeling_ministral3 import (
    Ministral3MLP,
    Ministral3RMSNorm,
    Ministral3RotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from checkpoint_convert.hf_package.attention import AttentionMask
from checkpoint_convert.hf_package.configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig


class LayerwiseCache(Protocol):
    """A KV cache as the layers use it."""

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes keys and values `[a, groups, T, head_dim]`; returns those to attend to: `[a, groups, E, head_dim]`."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and Llama-4's query scale."""

    def __init__(self, config: NemotronLabsDiffusionConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        query_width, key_width = (
            heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, rotary: Rotary, mask: AttentionMask, cache: LayerwiseCache | None) -> Tensor:
        """`[a, T, h]` to `[a, T, h]`."""
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, rotary.cosine, rotary.sine)
        if rotary.query_scale is not None:
            query = query * rotary.query_scale
        if cache is not None:
            key, value = cache.update(self.layer_idx, key, value)
        if mask.flash is None:
            output = self._attend(query, key, value, mask.mask, mask.causal)
        else:
            output = mask.flash.attend(self._attend, query, key, value)
        return self.o_proj(output.flatten(2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: object, causal: bool) -> Tensor:
        dropout = self.config.attention_dropout if self.training else 0.0
        if isinstance(mask, BlockMask) and query.device.type == "cpu" and not dropout:
            # The fused kernel would be compiled for every shape, by a C++ compiler; the unfused one needs none.
            output = flex_attention(query, key, value, block_mask=mask, scale=self.scaling, enable_gqa=True)
            return output.transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, is_causal=causal)[0]


class Layer(GradientCheckpointingLayer):
    """One decoder layer: attention and MLP, each after an RMSNorm and around a residual."""

    def __init__(self, config: NemotronLabsDiffusionConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = Ministral3MLP(config)
        self.input_layernorm = Ministral3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Ministral3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: Tensor, rotary: Rotary, mask: AttentionMask, cache: LayerwiseCache | None) -> Tensor:
        """`[a, T, h]` to `[a, T, h]`."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotary, mask, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Rotary:
    """Rotary embedding and query scale of some positions.

    Attributes:
        cosine: `[a, T, head_dim]`.
        sine: `[a, T, head_dim]`.
        query_scale: `[a, 1, T, 1]`, `1 + beta * ln(1 + floor(position / original length))`; None without a beta.
    """

    def __init__(self, embedding: nn.Module, hidden: Tensor, positions: Tensor, parameters: dict[str, float]) -> None:
        self.cosine, self.sine = embedding(hidden, position_ids=positions)
        beta, original = parameters.get("llama_4_scaling_beta"), parameters.get("original_max_position_embeddings")
        self.query_scale: Tensor | None = None
        if beta and original:
            beyond = torch.floor(positions / original)
            self.query_scale = (1 + beta * torch.log(1 + beyond))[:, None, :, None].to(hidden.dtype)


class Encoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = Ministral3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Ministral3RotaryEmbedding(config)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        mask: AttentionMask,
        cache: LayerwiseCache | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Final hidden states `[a, T, h]`.

        Args:
            embeddings: `[a, T, h]`.
            positions: int64 `[a, T]`.
            mask: visibility.
            cache: the KV cache; None for a forward without one.
            states: is filled with the embeddings, the output of each layer but the last, and the result.
        """
        rotary = Rotary(self.rotary_emb, embeddings, positions, self.config.rope_parameters)
        hidden = embeddings
        for layer in self.layers:
            if states is not None:
                states.append(hidden)
            hidden = layer(hidden, rotary, mask, cache)
        hidden = self.norm(hidden)
        if states is not None:
            states.append(hidden)
        return hidden
