"""The values computed from the hidden states of a drafter stage's passes: sampled tokens, target tokens, losses.

A readout (`model.ministral3.Readout`) gets hidden states `[n, h]` and the head, and returns a value per row. Logits
exist for one chunk of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nld_train.config.schema import AdapterConfig
from nld_train.losses.cross_entropy import chunked_nll
from nld_train.losses.drafter import row_losses
from nld_train.losses.vocabulary import VocabularyShard

Head = Callable[[Tensor], Tensor]


def most_likely_tokens(vocabulary: VocabularyShard, chunk_rows: int, rows: Tensor, head: Head) -> Tensor:
    """The most likely token of each row, int64 `[n]`.

    Args:
        vocabulary: this rank's shard of it.
        chunk_rows: rows whose logits exist at a time.
        rows: hidden states `[n, h]`.
        head: maps hidden states to logits.
    """

    def of_logits(logits: Tensor, chosen: Tensor) -> Tensor:
        del chosen
        return vocabulary.top(vocabulary.allowed(logits), 1)[:, 0]

    return _in_chunks(rows, head, of_logits, chunk_rows)


def sampled_tokens(vocabulary: VocabularyShard, chunk_rows: int, uniform: Tensor, rows: Tensor, head: Head) -> Tensor:
    """A token of each row, int64 `[n]`: sampled with a uniform number, or the most likely one where that is negative.

    Args:
        vocabulary: this rank's shard of it.
        chunk_rows: rows whose logits exist at a time.
        uniform: float64 `[n]`.
        rows: hidden states `[n, h]`.
        head: maps hidden states to logits.
    """

    def of_logits(logits: Tensor, chosen: Tensor) -> Tensor:
        logits, draws = vocabulary.allowed(logits), uniform[chosen]
        best = vocabulary.top(logits, 1)[:, 0]
        return torch.where(draws < 0, best, vocabulary.draw(logits, draws.clamp(min=0)))

    return _in_chunks(rows, head, of_logits, chunk_rows)


def target_tokens(
    vocabulary: VocabularyShard, chunk_rows: int, hidden: list[Tensor], rows: Tensor, head: Head
) -> Tensor:
    """As `most_likely_tokens`; appends the rows to `hidden`, since target logits are computed from them once more."""
    hidden.append(rows)
    return most_likely_tokens(vocabulary, chunk_rows, rows, head)


def draft_losses(
    vocabulary: VocabularyShard,
    chunk_rows: int,
    adapter: AdapterConfig,
    target_rows: Tensor,
    rows: Tensor,
    head: Head,
) -> Tensor:
    """The loss of each scored draft and its parts, float32 `[n, 4]`, see `losses.drafter.row_losses`.

    Args:
        vocabulary: this rank's shard of it.
        chunk_rows: rows whose logits exist at a time.
        adapter: temperature and candidates of the loss.
        target_rows: hidden states `[n, h]` of the rows that verify the drafts.
        rows: hidden states `[n, h]` of the drafts, with gradients.
        head: maps hidden states to logits.
    """

    def of_logits(logits: Tensor, chosen: Tensor) -> Tensor:
        with torch.no_grad():
            target_logits = head(target_rows[chosen])
        return row_losses(vocabulary, logits, target_logits, adapter.temperature, adapter.top_k)

    return _in_chunks(rows, head, of_logits, chunk_rows)


def _in_chunks(rows: Tensor, head: Head, of_logits: Callable[[Tensor, Tensor], Tensor], chunk_rows: int) -> Tensor:
    """`of_logits(logits, indices of the rows)` for a chunk of rows at a time."""
    return chunked_nll(rows, torch.arange(len(rows), device=rows.device), head, of_logits, chunk_rows)
