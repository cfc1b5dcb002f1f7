"""Where answers lie in conversations, and how many tokens their blocks have. No torch: plans count them as well."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

BlockOrigin = Literal["answer", "document"]


def answer_bounds(
    answers: NDArray[np.bool_], conversations: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of the first token of each answer, and of the first one after it: both int64 `[answers]`.

    Args:
        answers: bool `[T]`, whether each token belongs to an answer; a run of them in a conversation is one answer.
        conversations: ascending int64, the first token of each conversation, the first of them 0.
    """
    borders = conversations[(conversations > 0) & (conversations < len(answers))]
    before, after = np.zeros_like(answers), np.zeros_like(answers)
    before[1:], after[:-1] = answers[:-1], answers[1:]
    before[borders] = after[borders - 1] = False
    return np.flatnonzero(answers & ~before), np.flatnonzero(answers & ~after) + 1


def block_bounds(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    conversations: NDArray[np.int64],
    block_size: int,
    blocks: BlockOrigin,
    fill: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token of the first block of each answer, and tokens of all its blocks: both int64 `[answers]`.

    Args:
        starts: first token of each answer, `[answers]`.
        ends: the first one after it.
        conversations: first token of the conversation of each answer, `[answers]`.
        block_size: B.
        blocks: whether blocks are counted from the start of each answer, or of its conversation.
        fill: whether the last block of each answer is filled up to B tokens.
    """
    origins = starts if blocks == "answer" else conversations
    first = origins + (starts - origins) // block_size * block_size
    lengths = ends - first
    return first, -(-lengths // block_size) * block_size if fill else lengths
