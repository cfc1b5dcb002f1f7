"""An AR forward over a cache of `transformers`, as its own loops of `generate` call it; and the check of arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from checkpoint_convert.hf_package.attention import AttentionMask
from checkpoint_convert.hf_package.encoder import Encoder


class LayerCache:
    """A cache of `transformers` as the layers here update one."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values `[b, groups, L, head_dim]`; returns all: `[b, groups, past + L, head_dim]`."""
        keys, values = self._cache.update(key, value, layer)
        return keys, values


def encode_cached(
    encoder: Encoder,
    embeddings: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Hidden states `[b, L, h]` of causal tokens after those in a cache, to which they are appended.

    Args:
        encoder: embedding, layers and norm.
        embeddings: `[b, L, h]`.
        attention_mask: `[b, past + L]`, 0 at padding, or a prepared mask of four dimensions; None for no padding.
        position_ids: int64 `[b, L]`; None counts real tokens.
        cache: of earlier tokens.
        states: filled with hidden states, see `Encoder.forward`.
    """
    length = embeddings.shape[1]
    mask = create_causal_mask(
        config=encoder.config,
        inputs_embeds=embeddings,
        attention_mask=attention_mask,
        past_key_values=cache,
        position_ids=position_ids,
    )
    if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
        position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]
    elif position_ids is None:
        position_ids = (cache.get_seq_length() + torch.arange(length, device=embeddings.device))[None]
    position_ids = position_ids.to(embeddings.device).expand(len(embeddings), -1)
    return encoder(embeddings, position_ids, AttentionMask(mask, causal=True), LayerCache(cache), states)


def check_forward(
    mode: str,
    input_ids: Any,
    inputs_embeds: Any,
    labels: Any,
    past_key_values: Any,
    clean_input_ids: Any,
    block_length: int | None,
    output_attentions: bool | None,
) -> None:
    """Refuses arguments of `forward` that contradict each other.

    Raises:
        ValueError: naming the argument.
    """
    if mode not in ("causal", "block"):
        raise ValueError(f"mode: {mode!r} is neither 'causal' nor 'block'")
    if labels is None and (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids: give either these or inputs_embeds")
    if input_ids is None and labels is not None:
        raise ValueError("labels: need input_ids, of which the noisy stream is made")
    if inputs_embeds is not None and mode == "block":
        raise ValueError("inputs_embeds: mode 'block' needs input_ids")
    if mode == "block" and labels is not None:
        raise ValueError("labels: the joint loss belongs to mode 'causal', which draws its own noise")
    if mode == "causal" and clean_input_ids is not None:
        raise ValueError("clean_input_ids: only mode 'block' has a second stream")
    if past_key_values is not None and (labels is not None or mode == "block"):
        raise ValueError("past_key_values: labels and mode 'block' have no cache")
    if block_length is not None and block_length < 1:
        raise ValueError(f"block_length: {block_length} is not 1 or more")
    if output_attentions:
        raise ValueError("output_attentions: this model returns no attention weights")
