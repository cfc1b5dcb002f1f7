"""The random numbers of drafter training: a pure function of seed, stage and sample index, like all noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nld_train.masking.noise import RandomStream, uniform


@dataclass(frozen=True)
class DraftDraws:
    """The random numbers with which one sample is drafted.

    Attributes:
        offset: where the first whole block of each document begins, 1 to B: block starts differ from step to step, and
            each has at least one token of real text before it.
        greedy: bool `[L]`, by index of the block: whether its drafts are the most likely tokens, not sampled ones.
        uniform: float64 `[L]` in [0, 1), by index in the noisy stream: the number from which a sampled draft is drawn.
        left_out: float64 `[L]` in [0, 1), by index of the block: which blocks are left out where not all fit.
    """

    offset: int
    greedy: NDArray[np.bool_]
    uniform: NDArray[np.float64]
    left_out: NDArray[np.float64]


def draw_drafts(
    seed: int, stage: str, sample_index: int, length: int, block_size: int, greedy_share: float
) -> DraftDraws:
    """Draws the random numbers of one sample.

    Args:
        seed: of the run.
        stage: name of the stage.
        sample_index: index of the sample in the stage's training order.
        length: L, tokens of the sample's stream.
        block_size: B.
        greedy_share: probability that a block is drafted greedily.
    """
    return DraftDraws(
        offset=1 + int(uniform(seed, stage, sample_index, RandomStream.BLOCK_OFFSET, 1)[0] * block_size),
        greedy=uniform(seed, stage, sample_index, RandomStream.GREEDY, length) < greedy_share,
        uniform=uniform(seed, stage, sample_index, RandomStream.DRAFTS, length),
        left_out=uniform(seed, stage, sample_index, RandomStream.LEFT_OUT, length),
    )
