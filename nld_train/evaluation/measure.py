"""Figures of a decoding, and how many logits a step may have."""

from __future__ import annotations

from typing import Any

from nld_train.decoding import DecodeResult, Mode
from nld_train.decoding.algorithms.statistics import accepted_per_cycle, agreement, tokens_per_forward

Figures = dict[str, Any]
# Most logits that a step may return: 1 GiB of float32.
LOGITS_AT_ONCE = 2**28


def rows_at_once(mode: Mode, block_length: int, vocabulary_size: int) -> int:
    """The largest batch, at least 1, whose decode steps stay within `LOGITS_AT_ONCE`.

    A step of quadratic self-speculation has logits for k drafts and k * k masks, one of the other modes for at most a
    block.
    """
    positions = {"ar": 1, "quadratic": block_length * (block_length + 1)}.get(mode, block_length)
    return max(1, LOGITS_AT_ONCE // (positions * vocabulary_size))


def figures(result: DecodeResult, reference: DecodeResult) -> Figures:
    """Figures of decoded prompts (docs/method.md, "Evaluation figures").

    Args:
        result: of some prompts.
        reference: AR decoding of the same prompts.

    Returns:
        `tokens_per_forward`; `accepted_per_pass` of a denoising or verification pass, None where there was none;
        `agreement` with AR; and the counts behind them.
    """
    return {
        "tokens_per_forward": tokens_per_forward(result),
        "accepted_per_pass": accepted_per_cycle(result),
        "agreement": agreement(result.token_ids, reference.token_ids),
        "new_tokens": sum(result.new_tokens),
        "forwards": sum(result.sequence_forwards),
    }


def shown(value: float | None, form: str = ".2f") -> str:
    """A figure in a table; "-" where there is none."""
    return "-" if value is None else format(value, form)
