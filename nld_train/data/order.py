"""The global order of a stage's samples: pure functions of the configuration, without index files or state.

Each epoch of a set is a keyed permutation of its samples. A blend interleaves sets in fixed proportions. A stage's
order maps a sample index (from 0, growing through epochs) to a set and a sample of it. Nothing depends on the layout.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nld_train.config.schema import Config, SourceConfig
from nld_train.data.packed import SampleSet
from nld_train.data.permutation import permute, round_keys
from nld_train.data.sample_sets import OpenSet, open_set, train_sources, validation_sources
from nld_train.errors import UserError

BLEND_PERIOD = 10_000


class StagePlan(Protocol):
    """The attributes of a planned stage (`nld_train.config.plan`) that its order depends on."""

    @property
    def name(self) -> str:
        """Name of the stage."""

    @property
    def samples(self) -> int:
        """Samples that the stage consumes."""


class Blend:
    """Interleaves sets in fixed proportions: sample index k -> (set, running index in that set), a pure function of k.

    Weights are normalised and rounded to whole numbers that sum to a period of `BLEND_PERIOD` = 10,000 (largest
    remainder), so proportions are exact to 0.01 %; every positive weight gets at least 1. Inside the period each index
    goes to the set that is furthest behind its proportion, so every range of indices is mixed as evenly as possible.

    Args:
        weights: one per set, not normalised, all positive.

    Raises:
        UserError: no set, a weight that is not positive and finite, or more sets than half a period.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = _quantise(weights)
        self.period = sum(self.counts)
        self._sets, self._ranks = _interleave(self.counts)

    def locate(self, sample_index: int) -> tuple[int, int]:
        """The set of a sample index, and how many smaller indices go to the same set."""
        periods, within = divmod(sample_index, self.period)
        chosen = self._sets[within]
        return chosen, periods * self.counts[chosen] + self._ranks[within]

    def consumed(self, count: int) -> list[int]:
        """How many of the first `count` sample indices go to each set."""
        periods, within = divmod(count, self.period)
        partial = self._sets[:within]
        return [periods * count + partial.count(chosen) for chosen, count in enumerate(self.counts)]


def _quantise(weights: Sequence[float]) -> list[int]:
    """Samples of each set in one period, divided by their greatest common divisor."""
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"a blend needs sets with positive weights, got {list(weights)}: leave out sets without weight")
    if len(weights) > BLEND_PERIOD // 2:
        raise UserError(f"a blend of {len(weights)} sets is too wide: at most {BLEND_PERIOD // 2} sets")
    total = math.fsum(weights)
    exact = [weight / total * BLEND_PERIOD for weight in weights]
    counts = [max(1, int(number)) for number in exact]
    most_rounded_down = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    while sum(counts) < BLEND_PERIOD:  # the rounded-down remainders
        counts[most_rounded_down.pop(0)] += 1
    while sum(counts) > BLEND_PERIOD:  # the minimum of 1 for tiny weights is taken from the largest
        counts[counts.index(max(counts))] -= 1
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


def _interleave(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The set of each index of a period, and how many indices before it in the period go to the same set.

    Integers only: `(k + 1) * count - assigned * period` is how far a set is behind, scaled by the period.
    """
    proportions = np.array(counts, dtype=np.int64)
    period = int(proportions.sum())
    behind = np.zeros_like(proportions)
    assigned = [0] * len(counts)
    sets, ranks = [], []
    for _ in range(period):
        behind += proportions
        chosen = int(np.argmax(behind))
        behind[chosen] -= period
        sets.append(chosen)
        ranks.append(assigned[chosen])
        assigned[chosen] += 1
    return sets, ranks


@dataclass(frozen=True)
class StageOrder:
    """The order of a stage's samples.

    Attributes:
        seed: the run's seed.
        blend: the sets' interleaving.
        sets: the blended sets.
        starts: for each set, how many of its samples earlier stages consumed.
    """

    seed: int
    blend: Blend
    sets: tuple[SampleSet, ...]
    starts: tuple[int, ...]

    def locate(self, sample_index: int) -> tuple[int, int]:
        """Index in the stage, from 0 -> (number of the set, sample in that set). Takes some ten microseconds."""
        chosen, index = self.blend.locate(sample_index)
        samples = self.sets[chosen]
        epoch, position = divmod(self.starts[chosen] + index, len(samples))
        return chosen, permute(position, len(samples), round_keys(self.seed, samples.fingerprint, epoch))

    def samples_before_repetition(self, count: int) -> int:
        """How many of the first `count` samples come before any set begins its next epoch."""

        def repeats(number: int) -> bool:
            used = self.blend.consumed(number)
            ends = (start + more for start, more in zip(self.starts, used, strict=True))
            return any(end > len(samples) for end, samples in zip(ends, self.sets, strict=True))

        return bisect_left(range(1, count + 1), True, key=repeats)

    @property
    def fingerprint(self) -> str:
        """Equal for two orders that give the same sample at every index; saved in checkpoints, compared on resume."""
        parts = [(samples.fingerprint, samples.sequence_length) for samples in self.sets]
        return hashlib.sha256(repr((self.seed, self.blend.counts, self.starts, parts)).encode()).hexdigest()


def make_order(
    seed: int,
    sources: Sequence[SourceConfig],
    sets: Mapping[str, SampleSet],
    starts: Mapping[str, int] | None = None,
) -> StageOrder:
    """Order over a blend.

    Args:
        seed: of the permutations.
        sources: prefixes and weights.
        sets: open sets by prefix.
        starts: by prefix, how many samples of the set were consumed before (default: 0).

    Raises:
        UserError: a set occurs twice in the blend, or a weight is not positive.
    """
    prefixes = [source.prefix for source in sources]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise UserError(f"{prefix} occurs twice in one blend: give it once, with the sum of its weights")
    return StageOrder(
        seed=seed,
        blend=Blend([source.weight for source in sources]),
        sets=tuple(sets[prefix] for prefix in prefixes),
        starts=tuple((starts or {}).get(prefix, 0) for prefix in prefixes),
    )


def stage_orders(config: Config, plans: Sequence[StagePlan], open_one: OpenSet = open_set) -> dict[str, StageOrder]:
    """The order of every planned stage, by name.

    A stage with `data_start: continue` continues in each set where earlier stages stopped, unless it packs the set
    otherwise than they did; with `beginning` it starts at the first sample of its sets. The result depends on nothing
    but the configuration and the sets.

    Args:
        config: the run.
        plans: the run's stages in order, each with the samples that it consumes.
        open_one: opens a set.

    Raises:
        UserError: a set cannot be read, or a blend is not valid.
    """
    orders: dict[str, StageOrder] = {}
    consumed: dict[tuple[str, str], int] = {}
    for plan in plans:
        sources = train_sources(config, plan.name)
        sets = {source.prefix: open_one(config, plan.name, source.prefix) for source in sources}
        anew = config.stages[plan.name].data_start == "beginning"
        starts = {prefix: 0 if anew else consumed.get(_identity(found), 0) for prefix, found in sets.items()}
        order = make_order(config.run.seed, sources, sets, starts)
        for found, start, count in zip(order.sets, order.starts, order.blend.consumed(plan.samples), strict=True):
            consumed[_identity(found)] = start + count
        orders[plan.name] = order
    return orders


def _identity(samples: SampleSet) -> tuple[str, str]:
    return samples.prefix, samples.fingerprint


def held_out_order(config: Config, stage: str) -> StageOrder:
    """The order of the held-out samples of a stage. Raises `UserError` where a set cannot be read."""
    sources = validation_sources(config, stage)
    sets = {source.prefix: open_set(config, stage, source.prefix) for source in sources}
    return make_order(config.run.seed, sources, sets)
