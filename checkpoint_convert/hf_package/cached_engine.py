"""The engine of this model for the decoder: a static KV cache, and each step as one forward of encoder and head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from checkpoint_convert.hf_package.attached_drafter import AttachedDrafter
from checkpoint_convert.hf_package.attention import AttentionMask, FlashRows, prepare
from checkpoint_convert.hf_package.drafter import Drafter
from checkpoint_convert.hf_package.encoder import Encoder
from nld_train.decoding.clean_stream import CleanStream
from nld_train.decoding.engines.cuda_graphs import cycles_on
from nld_train.decoding.engines.engine import Step
from nld_train.decoding.engines.kv_cache import KeyValueCache, allocated_cache
from nld_train.model.vision.picture_prompt import ImageTokens
from nld_train.model.vision.pictures import Pictures

# FlexAttention is compiled for each number of keys: cache lengths are rounded up to multiples of this, so that there
# are few of them.
FLEX_KEYS = 128


@dataclass(frozen=True)
class Vision:
    """What a vision-language model has beside its text decoder.

    Attributes:
        image_tokens: the tokens of pictures.
        features: from pictures, on the model's device, to `[n, h]`, one row for each of their `[IMG]` tokens.
    """

    image_tokens: ImageTokens
    features: Callable[[Pictures], Tensor]


class CachedEngine:
    """An `engine.Engine` for one model; `engine.Step` describes a step.

    Args:
        encoder: embedding, layers and norm; the attention implementation of its config is used.
        head: hidden states to logits.
        drafter: the drafter adapter, or None.
        mask_token_id: the id of masked tokens; None for that of the config.
        vision: the features of pictures; None for a model that reads text alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Linear,
        drafter: Drafter | AttachedDrafter | None = None,
        mask_token_id: int | None = None,
        vision: Vision | None = None,
    ) -> None:
        config = encoder.config
        self.encoder, self.head, self.drafter = encoder, head, drafter
        self.vocabulary_size: int = config.vocab_size
        self.mask_token_id: int = config.mask_token_id if mask_token_id is None else mask_token_id
        self.context_length: int = config.max_position_embeddings
        self.has_adapter = drafter is not None
        block = config.block_size if config.dlm_clean == "block" else None
        self.image_tokens = None if vision is None else vision.image_tokens
        self._features = None if vision is None else vision.features
        self.clean_stream = CleanStream(block, config.ar_loss_weight != 0)
        masks = config._attn_implementation in ("sdpa", "eager")
        self.cycles = cycles_on(encoder.embed_tokens.weight.device, fixed=masks)
        self._cache: KeyValueCache | None = None
        self._hidden: Tensor | None = None

    @property
    def _implementation(self) -> str:
        return self.encoder.config._attn_implementation

    @property
    def _flex(self) -> bool:
        return self._implementation == "flex_attention"

    def allocate(self, slots: int, capacity: int) -> None:
        """See `engine.Engine.allocate`."""
        capacity += -capacity % FLEX_KEYS if self._flex else 0
        self._hidden = None
        self._cache = allocated_cache(self._cache, slots, capacity, self.cycles)

    def keep_slots(self, slots: Tensor) -> None:
        """See `engine.Engine.keep_slots`."""
        self._allocated_cache().keep_slots(slots)
        self._hidden = None

    def forward(self, step: Step) -> Tensor:
        """See `engine.Engine.forward`."""
        cache, encoder = self._allocated_cache(), self.encoder
        device, entries = encoder.embed_tokens.weight.device, self._entries(step)
        cache.begin_step(step, entries, device)
        embeddings = self._embeddings(step, device)
        mask = step_mask(self._implementation, step, entries, device, embeddings.dtype)
        with self.drafter.installed() if step.adapter and self.drafter else nullcontext():
            self._hidden = encoder(embeddings, step.positions.to(device), mask, cache)
        logits: Tensor = self.head(self._hidden) if step.outputs is None else self.logits_at(step.outputs)
        return logits

    def _embeddings(self, step: Step, device: torch.device) -> Tensor:
        """`[a, T, h]`: those of the tokens, and the features of the step's pictures at their `[IMG]` tokens."""
        tokens = step.tokens.to(device)
        embeddings: Tensor = self.encoder.embed_tokens(tokens)
        if step.pictures is None:
            return embeddings
        assert self._features is not None
        assert self.image_tokens is not None
        features = self._features(step.pictures.to(device)).to(embeddings.dtype)
        of_pictures = (tokens == self.image_tokens.token_id)[:, :, None]
        return embeddings.masked_scatter(of_pictures, features)

    def logits_at(self, outputs: Tensor) -> Tensor:
        """See `engine.Engine.logits_at`."""
        hidden = self._hidden
        assert hidden is not None, "no forward has run since the slots last changed"
        logits: Tensor = self.head(
            hidden.gather(1, outputs.to(hidden.device).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        )
        return logits

    def _allocated_cache(self) -> KeyValueCache:
        if self._cache is None:
            raise RuntimeError("the engine has no cache: call allocate first")
        return self._cache

    def _entries(self, step: Step) -> int:
        if step.entries is not None:
            return step.entries
        entries = int(step.cached.max()) + step.tokens.shape[1]
        return entries + (-entries % FLEX_KEYS if self._flex else 0)


def step_mask(implementation: str, step: Step, entries: int, device: torch.device, dtype: torch.dtype) -> AttentionMask:
    """The attention mask of one step over `entries` entries of the cache.

    Raises:
        ValueError: a pattern (quadratic self-speculation) under an implementation that takes no masks.
    """
    rows, length = step.tokens.shape
    if step.entries is not None:
        visible = step.visible(entries).unsqueeze(1)
        hidden = torch.finfo(dtype).min if implementation == "eager" else float("-inf")
        return AttentionMask(torch.where(visible, visible.new_zeros((), dtype=dtype), hidden))
    if step.pattern is None and implementation.startswith("flash"):
        return AttentionMask(
            None, flash=FlashRows.of(length, step.counts, step.cached + step.counts, step.causal, device)
        )
    if step.pattern is None and implementation in ("sdpa", "eager"):
        aligned = bool((step.cached == step.cached[0]).all())
        whole = not bool(step.causal.any()) and bool((step.counts == length).all())
        if aligned and (length == 1 or whole):
            return AttentionMask(None)
        # Padding comes after all real tokens, so that a causal mask hides it from them.
        if implementation == "sdpa" and not bool(step.cached.any()) and bool(step.causal.all()):
            return AttentionMask(None, causal=True)
    allowed = step.visible(entries).to(device)

    def rule(row: Tensor, query: Tensor, key: Tensor) -> Any:
        return allowed[row, query, key]

    return prepare(implementation, rule, (rows, length, entries), device, dtype)
