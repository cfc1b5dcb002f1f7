"""Shared by measurements: the limit on logits per decode step, the progress, and the format of figures in tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nld_train.decoding import Mode
from nld_train.decoding.algorithms.outputs import Observer
from nld_train.decoding.command_line.observers import TokenCounter
from nld_train.progress import progress_bar

Figures = dict[str, Any]
# Maximum number of logits that a step may return: 1 GiB of float32.
LOGITS_AT_ONCE = 2**28


def rows_at_once(mode: Mode, block_length: int, vocabulary_size: int) -> int:
    """The largest batch, at least 1, whose decode steps stay within `LOGITS_AT_ONCE`.

    A step of quadratic self-speculation has logits for k drafts and k * k masks, one of the other modes for at most a
    block.
    """
    positions = {"ar": 1, "quadratic": block_length * (block_length + 1)}.get(mode, block_length)
    return max(1, LOGITS_AT_ONCE // (positions * vocabulary_size))


@contextmanager
def decoding_progress(what: str, sequences: int, max_new_tokens: int) -> Iterator[Callable[[], Observer]]:
    """Shows the progress of several decodings, in tokens.

    Args:
        what: is decoded.
        sequences: of all decodings together.
        max_new_tokens: of each sequence.

    Yields:
        Makes the observer of the next decoding.
    """
    with progress_bar(what, sequences * max_new_tokens) as advance:
        yield lambda: TokenCounter(advance, max_new_tokens)


def shown(value: float | None, form: str = ".2f") -> str:
    """A figure in a table; "-" where there is none."""
    return "-" if value is None else format(value, form)
