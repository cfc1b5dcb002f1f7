"""Which tokens of a continuation are masked for the bound, and the weight of each masked token.

The bound is the negative of the training objective, with a linear noise schedule whose smallest masking probability is
0 (docs/harness.md, "The bound"). Levels are uniform, so every number of masked tokens is equally likely, and its weight
is the schedule's at the masked fraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from nld_train.masking.linear_schedule import LinearSchedule
from nld_train.masking.noise import uniform

_SCHEDULE = LinearSchedule(epsilon=0.0)
# Numbers of the random streams.
_LEVELS, _POSITIONS = 0, 1


@dataclass(frozen=True)
class Masks:
    """Copies of a continuation of m tokens, each with its own masked tokens.

    Attributes:
        masked: bool `[c, m]`.
        weights: float64 `[c, m]`; the bound is the sum of weight times log-probability over masked tokens.
        blocks: tokens of each block, in order.
        sampled: copies of each block that were drawn; 0 where every subset of the block is enumerated.
    """

    masked: Tensor
    weights: Tensor
    blocks: list[int]
    sampled: list[int]

    def total(self, log_probabilities: Tensor) -> float:
        """The bound from log-probabilities float64 `[c, m]`, 0 at tokens that are not masked."""
        return float((self.weights * log_probabilities).sum())

    def standard_error(self, log_probabilities: Tensor) -> float:
        """Standard error of `total`, from differences of neighbouring strata; slightly too large, as levels differ."""
        terms = (self.weights * log_probabilities).split(self.blocks, dim=1)
        variance = 0.0
        for block, count in zip(terms, self.sampled, strict=True):
            if count > 1:
                each = count * block.sum(1)[:count]
                variance += float(each.diff().square().sum()) / (2 * count * (count - 1))
        return float(np.sqrt(variance))


def draw_masks(size: int, block_length: int, samples: int, seed: int, name: str) -> Masks:
    """Masks tokens of every block of a continuation.

    The subsets of a block of b tokens are enumerated if the 2^b - 1 non-empty ones are no more than `samples`. Of a
    longer block `samples` copies are drawn: the level t of copy s is uniform in the s-th of `samples` equal slices of
    [0, 1), l = floor(p(t) b) + 1 uniformly chosen tokens are masked, and each has the schedule's loss weight at l / b.

    Args:
        size: m, tokens of the continuation, at least 1.
        block_length: B; the first block begins with the continuation.
        samples: maximum number of copies of a block.
        seed: of the noise.
        name: key of the noise; continuations of one context share it, so that their differences have less noise.
    """
    blocks = [min(block_length, size - start) for start in range(0, size, block_length)]
    enumerated = [block < 62 and 2**block - 1 <= samples for block in blocks]
    copies = max(2**block - 1 if whole else samples for block, whole in zip(blocks, enumerated, strict=True))
    masked = torch.zeros(copies, size, dtype=torch.bool)
    weights = torch.zeros(copies, size, dtype=torch.float64)
    start = 0
    for number, (block, whole) in enumerate(zip(blocks, enumerated, strict=True)):
        chosen, weight = _every_subset(block) if whole else _strata(block, samples, seed, name, number)
        masked[: len(chosen), start : start + block] = chosen
        weights[: len(chosen), start : start + block] = weight[:, None] * chosen
        start += block
    return Masks(masked, weights, blocks, [0 if whole else samples for whole in enumerated])


def _loss_weights(block: int) -> list[Fraction]:
    """Loss weight of a token where 1, .., b tokens of a block of b are masked, exactly."""
    return [Fraction(_SCHEDULE.loss_weight(Fraction(count, block))) for count in range(1, block + 1)]


def _every_subset(block: int) -> tuple[Tensor, Tensor]:
    """All non-empty subsets bool `[2^b - 1, b]`, and float64 weights: probability of the subset times loss weight."""
    subsets = list(chain.from_iterable(combinations(range(block), count) for count in range(1, block + 1)))
    masked = torch.zeros(len(subsets), block, dtype=torch.bool)
    for row, subset in enumerate(subsets):
        masked[row, list(subset)] = True
    by_count = _loss_weights(block)
    weights = [float(by_count[len(subset) - 1] / (block * comb(block, len(subset)))) for subset in subsets]
    return masked, torch.tensor(weights, dtype=torch.float64)


def _strata(block: int, samples: int, seed: int, name: str, number: int) -> tuple[Tensor, Tensor]:
    """bool `[samples, b]` and float64 `[samples]`."""
    levels = (np.arange(samples) + uniform(seed, name, number, _LEVELS, samples)) / samples
    counts = (np.minimum(np.floor(_SCHEDULE.probability(levels) * block), block - 1) + 1).astype(np.int64)
    order = uniform(seed, name, number, _POSITIONS, samples * block).reshape(samples, block).argsort(axis=1)
    masked = order.argsort(axis=1) < counts[:, None]
    weights = np.array(_loss_weights(block), dtype=np.float64)[counts - 1]
    return torch.from_numpy(masked), torch.from_numpy(weights / samples)
