"""The decoder's engine over this model: a static cache, and each step as one forward of the encoder and the head."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from checkpoint_convert.hf_package.attention import AttentionMask, FlashRows, prepare
from checkpoint_convert.hf_package.drafter import Drafter
from checkpoint_convert.hf_package.encoder import Encoder
from nld_train.decoding.engines.engine import Step

# FlexAttention is compiled for a number of keys: cache lengths are rounded up, so that there are few of them.
FLEX_KEYS = 128


class StaticCache:
    """Keys and values of all layers: `[layers, rows, groups, capacity, head_dim]` each.

    Attributes:
        cached: int64 `[a]`, where the next step's tokens go in each row.
        lines: int64 `[a]`, the lines of its rows; None for all of them.
        entries: how many entries the step may look at.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        # Zeros, because what is invisible is still multiplied by zero, and garbage could be NaN.
        self._keys = [like.new_zeros(shape) for _ in range(layers)]
        self._values = [like.new_zeros(shape) for _ in range(layers)]
        self.capacity = shape[2]
        self.cached = torch.zeros(shape[0], dtype=torch.int64)
        self.lines: Tensor | None = None
        self.entries = 0

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts `[a, groups, T, d]` at each row's place and returns the entries to look at, `[a, groups, E, d]`."""
        return self._written(self._keys[layer], key), self._written(self._values[layer], value)

    def keep_slots(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        for caches in (self._keys, self._values):
            for layer, cache in enumerate(caches):
                caches[layer] = cache[rows.to(cache.device)]

    def _written(self, cache: Tensor, new: Tensor) -> Tensor:
        start, length = int(self.cached[0]), new.shape[2]
        if self.lines is not None:
            lines = self.lines.to(cache.device)
            entries = (self.cached[:, None] + torch.arange(length)).to(cache.device)
            cache[lines[:, None], :, entries] = new.transpose(1, 2)
            return cache[:, :, : self.entries][lines]
        if bool((self.cached == start).all()):
            cache[:, :, start : start + length] = new
        else:
            index = (self.cached[:, None] + torch.arange(length)).to(cache.device)
            cache.scatter_(2, index[:, None, :, None].expand_as(new), new)
        return cache[:, :, : self.entries]


class CachedEngine:
    """`engine.Engine` for one model. See there for the meaning of a step.

    Args:
        encoder: embedding, layers and norm; the attention implementation of its config is used.
        head: hidden states to logits.
        drafter: the drafter adapter, or None.
    """

    def __init__(self, encoder: Encoder, head: nn.Linear, drafter: Drafter | None = None) -> None:
        config = encoder.config
        self.encoder, self.head, self.drafter = encoder, head, drafter
        self.vocabulary_size: int = config.vocab_size
        self.mask_token_id: int = config.mask_token_id
        self.context_length: int = config.max_position_embeddings
        self.has_adapter = drafter is not None
        self._cache: StaticCache | None = None
        self._hidden: Tensor | None = None

    @property
    def _implementation(self) -> str:
        return self.encoder.config._attn_implementation

    @property
    def _flex(self) -> bool:
        return self._implementation == "flex_attention"

    def allocate(self, slots: int, capacity: int) -> None:
        """Makes an empty cache."""
        config = self.encoder.config
        capacity += -capacity % FLEX_KEYS if self._flex else 0
        shape = (slots, config.num_key_value_heads, capacity, config.head_dim)
        self._hidden = None
        self._cache = StaticCache(config.num_hidden_layers, shape, self.encoder.embed_tokens.weight.detach())

    def keep_slots(self, slots: Tensor) -> None:
        """Frees all slots but these."""
        self._open_cache().keep_slots(slots)
        self._hidden = None

    def forward(self, step: Step) -> Tensor:
        """Logits `[a, R, V]` of one step."""
        cache, encoder = self._open_cache(), self.encoder
        cache.cached, cache.lines, cache.entries = step.cached, step.slots, self._entries(step, cache.capacity)
        device = encoder.embed_tokens.weight.device
        embeddings = encoder.embed_tokens(step.tokens.to(device))
        view = step_view(self._implementation, step, cache.entries, device, embeddings.dtype)
        with self.drafter.installed() if step.adapter and self.drafter else nullcontext():
            self._hidden = encoder(embeddings, step.positions.to(device), view, cache)
        logits: Tensor = self.head(self._hidden) if step.outputs is None else self.logits_at(step.outputs)
        return logits

    def logits_at(self, outputs: Tensor) -> Tensor:
        """Logits `[a, R, V]` of other tokens of the last step, int64 `[a, R]`: the head alone runs."""
        hidden = self._hidden
        assert hidden is not None, "nothing was run, or a slot was freed since"
        logits: Tensor = self.head(
            hidden.gather(1, outputs.to(hidden.device).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        )
        return logits

    def _open_cache(self) -> StaticCache:
        if self._cache is None:
            raise RuntimeError("the engine has no cache: call allocate first")
        return self._cache

    def _entries(self, step: Step, capacity: int) -> int:
        entries = int(step.cached.max()) + step.tokens.shape[1]
        if entries > capacity:
            raise RuntimeError(f"a step needs {entries} entries of a cache of {capacity}")
        return min(capacity, entries + (-entries % FLEX_KEYS if self._flex else 0))


def step_view(implementation: str, step: Step, entries: int, device: torch.device, dtype: torch.dtype) -> AttentionMask:
    """Visibility of one step over `entries` entries of the cache.

    Raises:
        ValueError: a pattern (quadratic self-speculation) under an implementation that takes no masks.
    """
    rows, length = step.tokens.shape
    if step.pattern is None and implementation.startswith("flash"):
        return AttentionMask(
            None, flash=FlashRows.of(length, step.counts, step.cached + step.counts, step.causal, device)
        )
    if step.pattern is None and implementation in ("sdpa", "eager"):
        aligned = bool((step.cached == step.cached[0]).all())
        whole = not bool(step.causal.any()) and bool((step.counts == length).all())
        if aligned and (length == 1 or whole):
            return AttentionMask(None)
        # Padding stands behind all real tokens, so that a causal view hides it from them.
        if implementation == "sdpa" and not bool(step.cached.any()) and bool(step.causal.all()):
            return AttentionMask(None, causal=True)
    allowed = step.visible(entries).to(device)

    def rule(row: Tensor, query: Tensor, key: Tensor) -> Any:
        return allowed[row, query, key]

    return prepare(implementation, rule, (rows, length, entries), device, dtype)
