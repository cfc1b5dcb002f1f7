"""The forwards of a decode cycle over a KV cache, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nld_train.decoding.engines.engine import Engine, Step
from nld_train.model.vision.pictures import Pictures

# What a cycle computes: forwards, sampling, acceptance, without the host. From `Forwards` and named inputs `[a, ...]`
# to results `[a, ...]`, the first of which the host reads. A frozen dataclass, whose fields are all that it depends on
# beside its inputs: a graph of it is captured once and computes the same later. It reads no values of its inputs on the
# host, and its shapes do not depend on them.
Body = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Forwards:
    """Forwards over the cache of some sequences; they commit nothing and count nothing.

    Attributes:
        engine: the model.
        lengths: int64 `[a]`, committed tokens of each sequence that are in the cache.
        entries: entries of each slot that attention reads in fixed steps; None for trimmed steps.
    """

    engine: Engine
    lengths: Tensor
    entries: int | None = None

    def read_only(self, tokens: Tensor, counts: Tensor, adapter: bool = False) -> Tensor:
        """Runs a block, bidirectional inside, over the cache.

        Args:
            tokens: int64 `[a, T]`.
            counts: int64 `[a]`, real tokens of each sequence.
            adapter: whether the drafter adapter is on.

        Returns:
            float32 `[a, T, V]`.
        """
        causal = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        return self.run(tokens, counts, causal=causal, adapter=adapter)

    def causal(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Runs tokens causally over the cache; the first `counts` of each sequence can be committed: `[a, T, V]`."""
        return self.run(tokens, counts)

    def mixed(self, tokens: Tensor, counts: Tensor, causal: Tensor) -> Tensor:
        """One forward that is causal for the sequences of bool `[a]` `causal` and `read_only` for the others.

        Returns:
            float32 `[a, T, V]`.
        """
        return self.run(tokens, counts, causal=causal)

    def pattern(self, tokens: Tensor, offsets: Tensor, pattern: Tensor, outputs: int) -> Tensor:
        """Runs tokens with explicit offsets and visibility; the first `outputs` of each sequence can be committed.

        `logits_at` afterwards returns the logits of the others.

        Args:
            tokens: int64 `[a, T]`.
            offsets: int64 `[T]`, positions counted from each sequence's length; 0, 1, .. for the first `outputs`.
            pattern: bool `[T, T]` (query, key); the first `outputs` see each other causally and no other tokens.
            outputs: number of tokens whose logits are returned.

        Returns:
            float32 `[a, outputs, V]`.
        """
        rows = len(tokens)
        counts = torch.full((rows,), tokens.shape[1], device=tokens.device)
        index = torch.arange(outputs, device=tokens.device).expand(rows, -1)
        return self.run(tokens, counts, offsets=offsets, pattern=pattern, outputs=index)

    def logits_at(self, outputs: Tensor) -> Tensor:
        """Logits at indices int64 `[a, R]` into the tokens of the last forward, without another one: `[a, R, V]`."""
        return self._without_mask(self.engine.logits_at(outputs))

    def run(
        self,
        tokens: Tensor,
        counts: Tensor,
        causal: Tensor | None = None,
        offsets: Tensor | None = None,
        pattern: Tensor | None = None,
        outputs: Tensor | None = None,
        slots: Tensor | None = None,
        adapter: bool = False,
        pictures: Pictures | None = None,
    ) -> Tensor:
        """Any step (see `engine.Step`); causal and at the next positions where nothing else is given."""
        device = tokens.device
        offsets = torch.arange(tokens.shape[1], device=device) if offsets is None else offsets
        step = Step(
            tokens=tokens,
            positions=self.lengths[:, None] + offsets,
            counts=counts,
            cached=self.lengths,
            causal=torch.ones(len(tokens), dtype=torch.bool, device=device) if causal is None else causal,
            pattern=pattern,
            outputs=outputs,
            slots=slots,
            adapter=adapter,
            entries=self.entries,
            pictures=pictures,
        )
        return self._without_mask(self.engine.forward(step))

    def _without_mask(self, logits: Tensor) -> Tensor:
        """float32 logits with minus infinity at the mask token, which no mode predicts."""
        logits = logits.float()
        logits[..., self.engine.mask_token_id] = float("-inf")
        return logits
