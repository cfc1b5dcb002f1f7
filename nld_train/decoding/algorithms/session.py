"""The cache of one batch as its decoders see it: prefill, look, append, crop, and the count of every forward.

A place is a line of the cache. It holds one row after another: when a row has finished, the next prompt begins there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nld_train.decoding.engines.engine import Engine, Step


class Session:
    """Rows of unequal length on one engine. The cache holds causal keys and values of committed tokens only.

    Args:
        engine: the model.
        prompts: ids of each row.
        places: how many rows are at work at once; the first prompts begin in them.
        capacity: entries per place; must hold any row's text and the largest step beyond it.

    Attributes:
        rows: numbers of the rows at work, in the order of every tensor here.
        lengths: int64 `[a]`, committed tokens of each of them that are in the cache.
        forwards: decode forwards of the batch.
        prefills: prefill forwards of the batch.
        row_forwards: decode forwards that each row of the whole batch took part in.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], places: int, capacity: int) -> None:
        self.engine = engine
        self.rows = list(range(places))
        self.lengths = torch.zeros(places, dtype=torch.int64)
        self.forwards = 0
        self.prefills = 0
        self.row_forwards = [0] * len(prompts)
        self._prompts = prompts
        engine.begin(places, capacity)

    def begin_row(self, place: int, row: int) -> None:
        """Gives a place to another row, whose prompt then has to be prefilled."""
        self.rows[place] = row
        self.lengths = self.lengths.clone()
        self.lengths[place] = 0

    def prefill(self, places: Sequence[int], masks: int = 0) -> Tensor:
        """Runs prompts causally and keeps them.

        Args:
            places: of the rows whose prompts they are, ascending; no token of theirs is in the cache yet.
            masks: so many mask tokens follow each prompt; they see the prompt and each other and are not kept.

        Returns:
            float32 `[n, 1 + masks, V]`, one for each place: after the prompt's last token, then at each mask.
        """
        prompts = [self._prompts[self.rows[place]] for place in places]
        sizes = torch.tensor([len(prompt) for prompt in prompts])
        width = int(sizes.max()) + masks
        tokens = torch.full((len(sizes), width), self.engine.mask_token_id)
        for line, prompt in zip(tokens, prompts, strict=True):
            line[: len(prompt)] = torch.as_tensor(prompt)
        where = torch.tensor(places)
        logits = self._run(
            tokens,
            sizes + masks,
            pattern=_prompt_then_masks(sizes, width, masks) if masks else None,
            outputs=(sizes - 1)[:, None] + torch.arange(1 + masks),
            lines=None if len(places) == len(self.rows) else where,
        )
        self.prefills += 1
        self.lengths = self.lengths.index_copy(0, where, sizes)
        return logits

    def look(self, tokens: Tensor, counts: Tensor, adapter: bool = False, busy: Tensor | None = None) -> Tensor:
        """Runs a block over the cache, seeing itself in both directions; the cache stays as it is.

        Args:
            tokens: int64 `[a, T]`.
            counts: int64 `[a]`, real tokens of each row.
            adapter: with the drafter adapter.
            busy: bool `[a]`, rows for which this forward counts; None for all.

        Returns:
            float32 `[a, T, V]`.
        """
        return self._counted(tokens, counts, busy, causal=torch.zeros(len(tokens), dtype=torch.bool), adapter=adapter)

    def append(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Runs tokens causally over the cache and keeps the first `counts` of each row: float32 `[a, T, V]`."""
        logits = self._counted(tokens, counts)
        self.lengths = self.lengths + counts
        return logits

    def look_or_append(self, tokens: Tensor, counts: Tensor, appended: Tensor) -> Tensor:
        """One forward in which the rows of bool `[a]` `appended` append, and the others look: float32 `[a, T, V]`."""
        logits = self._counted(tokens, counts, causal=appended)
        self.lengths = self.lengths + torch.where(appended, counts, 0)
        return logits

    def peek(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """`look` for oracles: not counted."""
        return self._run(tokens, counts, causal=torch.zeros(len(tokens), dtype=torch.bool))

    def append_pattern(self, tokens: Tensor, offsets: Tensor, pattern: Tensor, appended: int) -> Tensor:
        """Runs tokens in an order and a pattern of their own and keeps the first `appended` of each row.

        `reread` then tells the logits of the others.

        Args:
            tokens: int64 `[a, T]`.
            offsets: int64 `[T]`, positions counted from each row's length; 0, 1, .. for the appended tokens.
            pattern: bool `[T, T]` (query, key); causal among the appended tokens, which see no others.
            appended: tokens to keep.

        Returns:
            float32 `[a, appended, V]`, after each token that is kept.
        """
        counts = torch.full((len(tokens),), tokens.shape[1])
        outputs = torch.arange(appended).expand(len(tokens), -1)
        logits = self._counted(tokens, counts, offsets=offsets, pattern=pattern, outputs=outputs)
        self.lengths = self.lengths + appended
        return logits

    def reread(self, outputs: Tensor) -> Tensor:
        """Logits at int64 `[a, R]`, places in the tokens of the last forward, which is not run again: `[a, R, V]`."""
        return self._without_mask(self.engine.reread(outputs))

    def crop(self, lengths: Tensor) -> None:
        """Takes back committed tokens: int64 `[a]`, the length of each row from here on."""
        if not bool((lengths <= self.lengths).all()):
            raise ValueError("crop: a row cannot become longer")
        self.lengths = lengths

    def keep(self, places: list[int]) -> None:
        """Goes on with these places only; the rows in the others leave the cache."""
        self.engine.keep(torch.tensor(places, dtype=torch.int64))
        self.rows = [self.rows[place] for place in places]
        self.lengths = self.lengths[places]

    def _counted(self, tokens: Tensor, counts: Tensor, busy: Tensor | None = None, **kwargs: object) -> Tensor:
        self.forwards += 1
        for place, row in enumerate(self.rows):
            self.row_forwards[row] += 1 if busy is None else int(busy[place])
        return self._run(tokens, counts, **kwargs)  # type: ignore[arg-type]

    def _run(
        self,
        tokens: Tensor,
        counts: Tensor,
        causal: Tensor | None = None,
        offsets: Tensor | None = None,
        pattern: Tensor | None = None,
        outputs: Tensor | None = None,
        lines: Tensor | None = None,
        adapter: bool = False,
    ) -> Tensor:
        offsets = torch.arange(tokens.shape[1]) if offsets is None else offsets
        cached = self.lengths if lines is None else self.lengths[lines]
        step = Step(
            tokens=tokens,
            positions=cached[:, None] + offsets,
            counts=counts,
            cached=cached,
            causal=torch.ones(len(tokens), dtype=torch.bool) if causal is None else causal,
            pattern=pattern,
            outputs=outputs,
            lines=lines,
            adapter=adapter,
        )
        return self._without_mask(self.engine.forward(step))

    def _without_mask(self, logits: Tensor) -> Tensor:
        """The mask is no text: it is never predicted, in no mode. float32."""
        logits = logits.float()
        logits[..., self.engine.mask_token_id] = float("-inf")
        return logits


def _prompt_then_masks(sizes: Tensor, width: int, masks: int) -> Tensor:
    """Prompt tokens see causally, the masks behind them see the prompt and all masks: bool `[b, width, width]`."""
    index = torch.arange(width)
    furthest = torch.where(index < sizes[:, None], index, (sizes + masks - 1)[:, None])
    return index <= furthest[:, :, None]
