"""The noise of the diffusion loss: a pure function of the seed, the stage and the sample index in the stage.

Nothing here has state. Parallel layout, micro-batch size, data workers and restarts cannot change a draw, because
none of them is an argument. The bits come from Philox, a counter-based generator, on the CPU: the same on every
machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nld_train.masking.schedule import ScheduleSettings, noise_schedule


class RandomStream(IntEnum):
    """Independent random streams of one sample: the last word of Philox's counter."""

    LEVEL = 0
    POSITIONS = 1
    STRATUM = 2
    BLOCK_OFFSET = 3
    GREEDY = 4
    DRAFTS = 5
    LEFT_OUT = 6


class NoiseSettings(ScheduleSettings, Protocol):
    """The keys of the configuration group `diffusion` that `draw_noise` reads."""

    @property
    def levels(self) -> Literal["independent", "stratified", "shared"]:
        """How the levels of a step depend on each other, see `sequence_level`."""

    @property
    def level_scope(self) -> Literal["sequence", "block"]:
        """Whether one level is drawn per sequence or per block."""


@dataclass(frozen=True)
class Noise:
    """The masked positions of one sample.

    Attributes:
        masked: bool `[L]`, True where the noisy stream shows the mask token.
        probability: float32 `[L]`, the probability p with which each position was masked.
    """

    masked: NDArray[np.bool_]
    probability: NDArray[np.float32]


def draw_noise(
    settings: NoiseSettings,
    seed: int,
    stage: str,
    sample_index: int,
    global_size: int,
    maskable: NDArray[np.bool_],
    blocks: NDArray[np.int64],
    level: float | None = None,
) -> Noise:
    """Draws the noise of one sample (docs/method.md, "Noise").

    Args:
        settings: the schedule, how levels depend on each other within a step (`levels`), and whether a level is drawn
            per sequence or per block (`level_scope`).
        seed: the run's seed.
        stage: name of the stage; stages have independent noise.
        sample_index: index of the sample in the stage's training order, from 0, growing through epochs.
        global_size: samples per optimizer step; stratified and shared levels belong to a step.
        maskable: bool `[L]`, False for positions that must stay visible (prompts, padding).
        blocks: int `[L]`, block index of each position, from `masking.layout.block_indices`.
        level: a fixed noise level in [0, 1] instead of a drawn one, for validation.

    Returns:
        The masked positions, and the probability with which each position was masked.
    """
    if level is not None:
        levels = np.full(maskable.shape, level)
    elif settings.level_scope == "block":
        levels = uniform(seed, stage, sample_index, RandomStream.LEVEL, int(blocks[-1]) + 1)[blocks]
    else:
        levels = np.full(maskable.shape, sequence_level(settings.levels, seed, stage, sample_index, global_size))
    # The loss weight is taken from the float32 value, so the draw compares against that same value.
    probability = noise_schedule(settings).probability(levels).astype(np.float32)
    drawn = uniform(seed, stage, sample_index, RandomStream.POSITIONS, len(maskable)) < probability
    return Noise(masked=maskable & drawn, probability=probability)


def sequence_level(
    levels: Literal["independent", "stratified", "shared"], seed: int, stage: str, sample_index: int, global_size: int
) -> float:
    """Noise level t ~ U(0, 1) of one sequence.

    `independent` draws each sequence's level independently ("DP-rank-varying mask ratio" in the paper's Table 1);
    `shared` draws one level for all sequences of a step (the baseline of that row); `stratified` draws the level of
    each sequence of a step from a different one of `global_size` equal slices of [0, 1): each level is still uniform,
    and their mean has less variance.
    """
    step, index_in_step = divmod(sample_index, global_size)
    if levels == "shared":
        return float(uniform(seed, stage, step, RandomStream.LEVEL, 1)[0])
    own = float(uniform(seed, stage, sample_index, RandomStream.LEVEL, 1)[0])
    if levels == "independent":
        return own
    return (int(_strata(seed, stage, step, global_size)[index_in_step]) + own) / global_size


@lru_cache(maxsize=8)
def _strata(seed: int, stage: str, step: int, global_size: int) -> NDArray[np.int64]:
    """A permutation of the step's slices, so that no rank always gets the low or the high noise levels."""
    return np.argsort(uniform(seed, stage, step, RandomStream.STRATUM, global_size), kind="stable")


def uniform(seed: int, stage: str, sample_index: int, stream: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for one sample: float64 `[count]`, the same bits on every machine and numpy version.

    Only `random_raw` is used: numpy promises the bit stream of a BitGenerator, but not of its distributions.
    """
    counter = np.array([0, 0, sample_index, stream], dtype=np.uint64)
    generator = np.random.Philox(key=_key(seed, stage), counter=counter)
    return np.multiply(generator.random_raw(count) >> np.uint64(11), 2.0**-53, dtype=np.float64)


@lru_cache(maxsize=64)
def _key(seed: int, stage: str) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype=np.uint64)
