"""The KV cache of one batch as decode algorithms use it, and the count of every forward.

A slot of the cache serves one sequence after another: when a sequence has finished, the next prompt is admitted to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.decoding.algorithms.kept_text import KeptText
from nld_train.decoding.engines.engine import Engine, Step


class Session:
    """Sequences of unequal length on one engine. The KV cache holds causal keys and values of committed tokens only.

    Args:
        engine: the model.
        prompts: ids of each sequence.
        slots: maximum number of active sequences; the first prompts are admitted to them.
        capacity: entries per slot: the longest text of a sequence plus the entries that a step needs beyond it.
        kept: what the cache holds already, of the text of a single sequence, and goes on to hold afterwards; None to
            begin with an empty cache.

    Attributes:
        active: numbers of the active sequences by slot, in the order of every tensor here.
        lengths: int64 `[a]`, committed tokens of each active sequence that are in the cache.
        forwards: decode forwards of the batch.
        prefills: prefill forwards of the batch.
        sequence_forwards: decode forwards of each sequence of the whole batch.
        prefill_tokens: tokens of the prompt of each sequence that had to be computed.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        slots: int,
        capacity: int,
        kept: KeptText | None = None,
    ) -> None:
        self.engine = engine
        self.active = list(range(slots))
        self.lengths = torch.zeros(slots, dtype=torch.int64)
        self.forwards = 0
        self.prefills = 0
        self.sequence_forwards = [0] * len(prompts)
        self.prefill_tokens = [0] * len(prompts)
        self._prompts, self._kept = prompts, kept
        if kept is None:
            engine.allocate(slots, capacity)
        else:
            self.lengths[0] = kept.begin(engine, prompts[0], capacity)

    def admit(self, slot: int, sequence: int) -> None:
        """Assigns a slot to another sequence, whose prompt must then be prefilled."""
        self.active[slot] = sequence
        self.lengths = self.lengths.clone()
        self.lengths[slot] = 0

    def prefill(self, slots: Sequence[int], masks: int = 0) -> Tensor:
        """Runs prompts causally, what the cache does not hold of them, and keeps their keys and values.

        Args:
            slots: slots to prefill, ascending.
            masks: number of mask tokens after each prompt; they see the prompt and each other and are not committed.

        Returns:
            float32 `[n, 1 + masks, V]`, one for each slot: after the prompt's last token, then at each mask.
        """
        index = torch.tensor(slots)
        cached = self.lengths[index]
        prompts = [self._prompts[self.active[slot]][size:] for slot, size in zip(slots, cached.tolist(), strict=True)]
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        width = int(sizes.max()) + masks
        tokens = torch.full((len(sizes), width), self.engine.mask_token_id)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.as_tensor(prompt)
        logits = self._run(
            tokens,
            sizes + masks,
            pattern=_prompt_then_masks(sizes, width, masks) if masks else None,
            outputs=(sizes - 1)[:, None] + torch.arange(1 + masks),
            slots=None if len(slots) == len(self.active) else index,
        )
        self.prefills += 1
        for slot, prompt in zip(slots, prompts, strict=True):
            self.prefill_tokens[self.active[slot]] = len(prompt)
        self.lengths = self.lengths.index_copy(0, index, cached + sizes)
        return logits

    def forward_read_only(
        self, tokens: Tensor, counts: Tensor, adapter: bool = False, counted: Tensor | None = None
    ) -> Tensor:
        """Runs a block, bidirectional inside, over the cache; commits nothing.

        Args:
            tokens: int64 `[a, T]`.
            counts: int64 `[a]`, real tokens of each sequence.
            adapter: whether the drafter adapter is on.
            counted: bool `[a]`, sequences for which this forward is counted; None for all.

        Returns:
            float32 `[a, T, V]`.
        """
        causal = torch.zeros(len(tokens), dtype=torch.bool)
        return self._run_counted(tokens, counts, counted, causal=causal, adapter=adapter)

    def forward_append(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Runs tokens causally over the cache and commits the first `counts` of each sequence: float32 `[a, T, V]`."""
        logits = self._run_counted(tokens, counts)
        self.lengths = self.lengths + counts
        return logits

    def forward_mixed(self, tokens: Tensor, counts: Tensor, appended: Tensor) -> Tensor:
        """One forward that appends for the sequences of bool `[a]` `appended` and is read-only for the others.

        Returns:
            float32 `[a, T, V]`.
        """
        logits = self._run_counted(tokens, counts, causal=appended)
        self.lengths = self.lengths + torch.where(appended, counts, 0)
        return logits

    def forward_uncounted(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """`forward_read_only` for the oracle bound: not counted."""
        return self._run(tokens, counts, causal=torch.zeros(len(tokens), dtype=torch.bool))

    def forward_append_pattern(self, tokens: Tensor, offsets: Tensor, pattern: Tensor, appended: int) -> Tensor:
        """Runs tokens with explicit offsets and visibility and commits the first `appended` of each sequence.

        `logits_at` afterwards returns the logits of the others.

        Args:
            tokens: int64 `[a, T]`.
            offsets: int64 `[T]`, positions counted from each sequence's length; 0, 1, .. for the appended tokens.
            pattern: bool `[T, T]` (query, key); appended tokens see each other causally and no other tokens.
            appended: tokens to commit.

        Returns:
            float32 `[a, appended, V]`, after each committed token.
        """
        counts = torch.full((len(tokens),), tokens.shape[1])
        outputs = torch.arange(appended).expand(len(tokens), -1)
        logits = self._run_counted(tokens, counts, offsets=offsets, pattern=pattern, outputs=outputs)
        self.lengths = self.lengths + appended
        return logits

    def logits_at(self, outputs: Tensor) -> Tensor:
        """Logits at indices int64 `[a, R]` into the tokens of the last forward, without another one: `[a, R, V]`."""
        return self._without_mask(self.engine.logits_at(outputs))

    def crop(self, lengths: Tensor) -> None:
        """Removes committed tokens at the end: int64 `[a]`, the new length of each sequence."""
        if not bool((lengths <= self.lengths).all()):
            raise ValueError("crop: a sequence cannot become longer")
        self.lengths = lengths

    def end(self, slot: int, new_tokens: Sequence[int]) -> None:
        """The sequence in a slot has ended with these tokens; those that the cache holds may be kept for another call.

        The cache need not hold the last ones, and may hold some that were drafted after the end.
        """
        if self._kept is not None:
            self._kept.end([*self._prompts[self.active[slot]], *new_tokens][: int(self.lengths[slot])])

    def keep_slots(self, slots: list[int]) -> None:
        """Keeps only these slots; the others are freed, unless their text is kept for another call."""
        if self._kept is None:
            self.engine.keep_slots(torch.tensor(slots, dtype=torch.int64))
        self.active = [self.active[slot] for slot in slots]
        self.lengths = self.lengths[slots]

    def _run_counted(self, tokens: Tensor, counts: Tensor, counted: Tensor | None = None, **kwargs: object) -> Tensor:
        self.forwards += 1
        for slot, sequence in enumerate(self.active):
            self.sequence_forwards[sequence] += 1 if counted is None else int(counted[slot])
        return self._run(tokens, counts, **kwargs)  # type: ignore[arg-type]

    def _run(
        self,
        tokens: Tensor,
        counts: Tensor,
        causal: Tensor | None = None,
        offsets: Tensor | None = None,
        pattern: Tensor | None = None,
        outputs: Tensor | None = None,
        slots: Tensor | None = None,
        adapter: bool = False,
    ) -> Tensor:
        offsets = torch.arange(tokens.shape[1]) if offsets is None else offsets
        cached = self.lengths if slots is None else self.lengths[slots]
        step = Step(
            tokens=tokens,
            positions=cached[:, None] + offsets,
            counts=counts,
            cached=cached,
            causal=torch.ones(len(tokens), dtype=torch.bool) if causal is None else causal,
            pattern=pattern,
            outputs=outputs,
            slots=slots,
            adapter=adapter,
        )
        return self._without_mask(self.engine.forward(step))

    def _without_mask(self, logits: Tensor) -> Tensor:
        """float32 logits with minus infinity at the mask token, which no mode predicts."""
        logits = logits.float()
        logits[..., self.engine.mask_token_id] = float("-inf")
        return logits


def _prompt_then_masks(sizes: Tensor, width: int, masks: int) -> Tensor:
    """Prompt tokens are causal; the masks after them see the prompt and all masks: bool `[b, width, width]`."""
    index = torch.arange(width)
    furthest = torch.where(index < sizes[:, None], index, (sizes + masks - 1)[:, None])
    return index <= furthest[:, :, None]
