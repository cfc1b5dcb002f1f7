"""Which tokens of a continuation the diffusion bound hides, and what each hidden token counts for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from nld_train.masking.noise import uniform

_LEVELS, _PLACES = 0, 1


@dataclass(frozen=True)
class Masks:
    """Copies of a continuation of m tokens, each with its own hidden tokens.

    Attributes:
        masked: bool `[c, m]`.
        weights: float64 `[c, m]`; the bound is the sum of weight times log-probability over hidden tokens.
        blocks: tokens of each block, in order.
        sampled: copies of each block that were drawn; 0 where every subset of it is there.
    """

    masked: Tensor
    weights: Tensor
    blocks: list[int]
    sampled: list[int]

    def total(self, log_probabilities: Tensor) -> float:
        """The bound from float64 `[c, m]`, 0 where nothing is hidden."""
        return float((self.weights * log_probabilities).sum())

    def standard_error(self, log_probabilities: Tensor) -> float:
        """Of `total`, from differences of neighbouring strata: slightly too large, since levels differ too."""
        terms = (self.weights * log_probabilities).split(self.blocks, dim=1)
        variance = 0.0
        for block, count in zip(terms, self.sampled, strict=True):
            if count > 1:
                each = count * block.sum(1)[:count]
                variance += float(each.diff().square().sum()) / (2 * count * (count - 1))
        return float(np.sqrt(variance))


def draw_masks(size: int, block_length: int, samples: int, seed: int, name: str) -> Masks:
    """Hides tokens of every block of a continuation (docs/harness.md, "The bound").

    A block of b tokens with 2^b - 1 subsets or fewer than `samples` is enumerated. Of a longer one `samples` copies are
    drawn: the level t of copy s lies in the s-th of so many equal slices of [0, 1), the number of hidden tokens is
    l = floor(t * b) + 1, which of them is uniform, and each counts b / l.

    Args:
        size: m, tokens of the continuation, at least 1.
        block_length: B; the first block begins with the continuation.
        samples: most copies of a block.
        seed: of the noise.
        name: what the noise belongs to; continuations of one context share its noise, so that choices compare.
    """
    blocks = [min(block_length, size - start) for start in range(0, size, block_length)]
    enumerated = [block < 62 and 2**block - 1 <= samples for block in blocks]
    copies = max(2**block - 1 if whole else samples for block, whole in zip(blocks, enumerated, strict=True))
    masked = torch.zeros(copies, size, dtype=torch.bool)
    weights = torch.zeros(copies, size, dtype=torch.float64)
    start = 0
    for number, (block, whole) in enumerate(zip(blocks, enumerated, strict=True)):
        hidden, weight = _every_subset(block) if whole else _strata(block, samples, seed, name, number)
        masked[: len(hidden), start : start + block] = hidden
        weights[: len(hidden), start : start + block] = weight[:, None] * hidden
        start += block
    return Masks(masked, weights, blocks, [0 if whole else samples for whole in enumerated])


def _every_subset(block: int) -> tuple[Tensor, Tensor]:
    """All bool `[2^b - 1, b]` with something hidden, and float64 weights: the integral of t^(l-1) (1-t)^(b-l)."""
    subsets = list(chain.from_iterable(combinations(range(block), count) for count in range(1, block + 1)))
    hidden = torch.zeros(len(subsets), block, dtype=torch.bool)
    for row, subset in enumerate(subsets):
        hidden[row, list(subset)] = True
    weights = [1 / (len(subset) * comb(block, len(subset))) for subset in subsets]
    return hidden, torch.tensor(weights, dtype=torch.float64)


def _strata(block: int, samples: int, seed: int, name: str, number: int) -> tuple[Tensor, Tensor]:
    """bool `[samples, b]` and float64 `[samples]`."""
    levels = (np.arange(samples) + uniform(seed, name, number, _LEVELS, samples)) / samples
    counts = np.minimum(np.floor(levels * block), block - 1) + 1
    order = uniform(seed, name, number, _PLACES, samples * block).reshape(samples, block).argsort(axis=1)
    hidden = order.argsort(axis=1) < counts[:, None]
    return torch.from_numpy(hidden), torch.from_numpy(block / counts / samples)
