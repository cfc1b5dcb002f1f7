"""Noise is a pure function of seed, stage and sample index, with the specified distribution."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import philox
import pytest
from numpy.typing import NDArray

from nld_train.config.schema import DiffusionConfig
from nld_train.masking.layout import block_indices
from nld_train.masking.linear_schedule import LinearSchedule
from nld_train.masking.noise import Noise, draw_noise, sequence_level, uniform

SETTINGS = DiffusionConfig(block_size=4, epsilon=1e-3, levels="independent", level_scope="sequence")
LENGTH, GLOBAL_SIZE = 37, 8
BLOCKS = block_indices(np.array([0] * 10 + [1] * 27), SETTINGS.block_size)


def draw(index: int, length: int = LENGTH, seed: int = 5, stage: str = "joint", **changes: Any) -> Noise:
    level, maskable = changes.pop("level", None), changes.pop("maskable", np.ones(length, dtype=bool))
    blocks = BLOCKS if length == LENGTH else block_indices(np.zeros(length, dtype=np.int64), SETTINGS.block_size)
    return draw_noise(replace(SETTINGS, **changes), seed, stage, index, GLOBAL_SIZE, maskable, blocks, level)


def level_of(noise: Noise) -> NDArray[np.float64]:
    """The noise level t back from p = (1 - eps) t + eps."""
    return (noise.probability.astype(np.float64) - 1e-3) / (1 - 1e-3)


def assert_uniform(values: NDArray[np.float64]) -> None:
    """Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by uniform numbers with probability 0.999; the seeds are fixed."""
    ordered, count = np.sort(values), len(values)
    assert ordered[0] >= 0
    assert ordered[-1] <= 1
    steps = np.arange(count + 1) / count
    distance = max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(count)


def same(first: Noise, second: Noise) -> bool:
    return np.array_equal(first.masked, second.masked) and np.array_equal(first.probability, second.probability)


# --- the stream of bits ---


def test_the_stream_is_philox() -> None:
    digest = hashlib.blake2b(b"5/joint", digest_size=16).digest()
    key = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    for index, stream in ((0, 0), (3, 1), (2**40 + 1, 2)):
        raw = philox.words(key, (0, 0, index, stream), 9)
        assert uniform(5, "joint", index, stream, 9).tolist() == [(word >> 11) / 2**53 for word in raw]


GOLDEN_UNIFORM = {  # seed, stage, index, stream
    (0, "joint", 0, 0): ["0x1.81952310073c7p-1", "0x1.1051a0584f5a0p-1", "0x1.644f98f2cbf6ap-1"],
    (1234, "joint", 7, 1): ["0x1.bf8fbdddb23b4p-3", "0x1.6b6f0607c7700p-2", "0x1.e0bcb08afe05ap-1"],
    (1234, "validation", 10**12, 1): ["0x1.82cdeab430540p-6", "0x1.f95563c56f240p-2", "0x1.37606e40ad3a9p-1"],
}


@pytest.mark.parametrize("arguments", GOLDEN_UNIFORM)
def test_golden_draws(arguments: tuple[int, str, int, int]) -> None:
    """A change of these numbers changes every run that was ever started: do not do it by accident."""
    assert [number.hex() for number in uniform(*arguments, 3).tolist()] == GOLDEN_UNIFORM[arguments]


@pytest.mark.parametrize(
    ("changes", "masked", "probability"),
    [
        ({"levels": "independent"}, ".x.x............", [0.21387934684753418, 0.21387934684753418]),
        ({"levels": "stratified"}, ".xxx....x...x..x", [0.5271099209785461, 0.5271099209785461]),
        ({"levels": "shared"}, "xxxxx..xxxx.x.xx", [0.9232405424118042, 0.9232405424118042]),
        ({"level_scope": "block"}, ".x.xx..x........", [0.21387934684753418, 0.1890908032655716]),
        ({"level": 0.25}, ".x.x........x...", [0.25075000524520874, 0.25075000524520874]),
    ],
)
def test_golden_noise(changes: dict[str, Any], masked: str, probability: list[float]) -> None:
    noise = draw(1003, length=16, seed=1234, **changes)
    assert "".join("x" if on else "." for on in noise.masked) == masked
    assert noise.probability[[0, 15]].tolist() == probability


# --- purity ---


def test_a_draw_depends_on_nothing_that_was_drawn_before() -> None:
    indices = list(range(50))
    forward = [draw(index, levels="stratified") for index in indices]
    shuffled = np.random.default_rng(0).permutation(indices)
    np.random.seed(3)
    again = {int(index): draw(int(index), levels="stratified") for index in shuffled}
    assert all(same(forward[index], again[index]) for index in indices)


_FRESH = """
import sys
sys.path[:0] = {paths!r}
from test_noise import fingerprint
print(fingerprint())
"""


def fingerprint() -> str:
    """A hash over draws of every kind."""
    digest = hashlib.sha256()
    for levels in ("independent", "stratified", "shared"):
        for scope in ("sequence", "block"):
            for index in (9, 2, 4096):
                noise = draw(index, levels=levels, level_scope=scope)
                digest.update(noise.masked.tobytes() + noise.probability.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("hash_seed", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_a_fresh_interpreter_draws_the_same_bits(hash_seed: str) -> None:
    fresh = subprocess.run(
        [sys.executable, "-c", _FRESH.format(paths=sys.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
    )
    assert fresh.stdout.strip() == fingerprint()


def test_seed_stage_sample_index_and_epoch_each_give_other_noise() -> None:
    """A later epoch has larger indices. Every pair differs, in the level and in the masked positions."""
    drawn = [draw(index, seed=seed, stage=stage) for index in (0, 1, 10**6) for seed in (5, 6) for stage in ("a", "b")]
    assert len({noise.probability[0] for noise in drawn}) == len(drawn)
    fixed = [
        draw(index, seed=seed, stage=stage, level=0.5)
        for index in (0, 1, 10**6)
        for seed in (5, 6)
        for stage in ("a", "b")
    ]
    assert len({noise.masked.tobytes() for noise in fixed}) == len(fixed)


def test_the_global_batch_size_matters_to_no_independent_draw() -> None:
    arguments = (np.ones(LENGTH, dtype=bool), BLOCKS)
    assert same(
        draw_noise(SETTINGS, 5, "joint", 77, 8, *arguments), draw_noise(SETTINGS, 5, "joint", 77, 512, *arguments)
    )


def test_seed_and_stage_cannot_be_confused() -> None:
    assert uniform(1, "2/joint", 0, 0, 1) != uniform(12, "/joint", 0, 0, 1)
    assert uniform(1, "joint", 0, 0, 1) != uniform(1, "joint", 0, 1, 1)


# --- levels ---


@pytest.mark.parametrize("levels", ["independent", "stratified", "shared"])
def test_levels_are_uniform(levels: Any) -> None:
    per_index = {"independent": 1, "stratified": 1, "shared": GLOBAL_SIZE}[levels]
    found = [sequence_level(levels, 5, "joint", index * per_index, GLOBAL_SIZE) for index in range(8000)]
    assert_uniform(np.array(found))


@pytest.mark.parametrize("first", [0, 3, 7])
def test_stratified_levels_are_uniform_at_every_index_of_a_step(first: int) -> None:
    """No rank always gets the light noise: a fixed index of the step gets all slices in turn."""
    indices = range(first, 3000 * GLOBAL_SIZE, GLOBAL_SIZE)
    assert_uniform(np.array([sequence_level("stratified", 5, "joint", index, GLOBAL_SIZE) for index in indices]))


@pytest.mark.parametrize("global_size", [1, 3, 8, 512])
def test_stratified_levels_hit_every_slice_once_per_step(global_size: int) -> None:
    orders = []
    for step in range(6):
        indices = range(step * global_size, (step + 1) * global_size)
        levels = [sequence_level("stratified", 5, "joint", index, global_size) for index in indices]
        orders.append([math.floor(level * global_size) for level in levels])
        assert sorted(orders[-1]) == list(range(global_size))
    if global_size >= 8:
        assert len(set(map(tuple, orders))) == len(orders)


def test_stratified_levels_do_not_repeat_inside_their_slices() -> None:
    inside = {sequence_level("stratified", 5, "joint", index, 8) * 8 % 1 for index in range(64)}
    assert len(inside) == 64


def test_shared_levels_are_one_per_step_but_masks_are_not() -> None:
    levels = [sequence_level("shared", 5, "joint", index, GLOBAL_SIZE) for index in range(3 * GLOBAL_SIZE)]
    steps = [set(levels[start : start + GLOBAL_SIZE]) for start in range(0, len(levels), GLOBAL_SIZE)]
    assert [len(step) for step in steps] == [1, 1, 1]
    assert len(set.union(*steps)) == 3
    fixed = {draw(index, level=0.5).masked.tobytes() for index in range(GLOBAL_SIZE)}
    assert len(fixed) == GLOBAL_SIZE


def test_independent_levels_of_neighbours_are_unrelated() -> None:
    levels = np.array([sequence_level("independent", 5, "joint", index, GLOBAL_SIZE) for index in range(4000)])
    assert abs(np.corrcoef(levels[:-1], levels[1:])[0, 1]) < 4 / math.sqrt(len(levels))
    assert len(set(levels)) == len(levels)


def test_a_sequence_has_one_level() -> None:
    assert all(len(set(draw(index).probability.tolist())) == 1 for index in range(20))


def test_block_levels_are_constant_inside_a_block_and_uniform_over_blocks() -> None:
    found = []
    for index in range(700):
        noise = draw(index, level_scope="block")
        by_block = [set(noise.probability[block == BLOCKS].tolist()) for block in range(BLOCKS[-1] + 1)]
        assert all(len(values) == 1 for values in by_block)
        assert len(set.union(*by_block)) == len(by_block)
        found.append(level_of(noise)[np.diff(BLOCKS, prepend=-1) > 0])
    assert_uniform(np.concatenate(found).clip(0, 1))


# --- masks ---


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.25])
def test_the_probability_of_a_level(epsilon: float) -> None:
    for level in (0.0, 1e-9, 0.3, 0.5, 1.0):
        assert LinearSchedule(epsilon).probability(level) == pytest.approx((1 - epsilon) * level + epsilon, rel=1e-12)
        noise = draw(0, level=level, epsilon=epsilon)
        assert noise.probability.dtype == np.float32
        assert noise.probability == pytest.approx(np.full(LENGTH, (1 - epsilon) * level + epsilon), rel=1e-6)


def test_full_noise_masks_all_and_no_noise_none() -> None:
    assert all(draw(index, level=1.0).masked.all() for index in range(50))
    assert not any(draw(index, level=0.0, epsilon=0.0).masked.any() for index in range(50))


@pytest.mark.parametrize("level", [0.02, 0.37, 0.9])
def test_the_masked_share_is_the_probability_at_every_position(level: float) -> None:
    masks = np.array([draw(index, level=level).masked for index in range(4000)])
    p = LinearSchedule(1e-3).probability(level)
    deviations = (masks.mean(axis=0) - p) / math.sqrt(p * (1 - p) / len(masks))
    assert np.abs(deviations).max() < 4
    assert abs(deviations.mean()) * math.sqrt(LENGTH) < 4


def test_neighbours_are_masked_independently() -> None:
    masks = np.array([draw(index, level=0.5).masked for index in range(4000)]).astype(float)
    related = np.corrcoef(masks.T) - np.eye(LENGTH)
    assert np.abs(related).max() < 5 / math.sqrt(len(masks))


@pytest.mark.parametrize("scope", ["sequence", "block"])
def test_the_mask_is_drawn_apart_from_the_level(scope: str) -> None:
    """Given p, each position is masked with probability p: were mask and level one draw, the first would betray it."""
    drawn = [draw(index, level_scope=scope) for index in range(6000)]
    for position in (0, 1, LENGTH - 1):
        p = np.array([noise.probability[position] for noise in drawn], dtype=np.float64)
        hit = np.array([noise.masked[position] for noise in drawn])
        for low in np.arange(0, 1, 0.2):
            chosen = (p >= low) & (p < low + 0.2)
            spread = math.sqrt((p[chosen] * (1 - p[chosen])).sum())
            assert abs(hit[chosen].sum() - p[chosen].sum()) < 4 * spread


@pytest.mark.parametrize(("levels", "spread"), [("independent", 3e-3), ("stratified", 8e-4), ("shared", 8e-3)])
def test_the_mean_masked_share_is_that_of_uniform_levels(levels: str, spread: float) -> None:
    """`spread` is the standard deviation of such a mean: that of a level is 1/sqrt(12)."""
    shares = [draw(index, levels=levels).masked.mean() for index in range(1500 * GLOBAL_SIZE)]
    assert np.mean(shares) == pytest.approx((1 + 1e-3) / 2, abs=4 * spread)


def test_what_is_not_maskable_stays_visible_and_changes_no_other_position() -> None:
    maskable = np.arange(LENGTH) % 3 > 0
    before = maskable.copy()
    for index in range(50):
        spared, whole = draw(index, maskable=maskable, level=0.8), draw(index, level=0.8)
        assert not spared.masked[~maskable].any()
        assert np.array_equal(spared.masked, whole.masked & maskable)
        assert np.array_equal(spared.probability, whole.probability)
    assert np.array_equal(maskable, before)
    assert not draw(0, maskable=np.zeros(LENGTH, dtype=bool), level=1.0).masked.any()


def test_a_longer_sample_begins_with_the_same_draws() -> None:
    """Positions are numbered from the start of the sample, so its length does not stir them."""
    assert np.array_equal(draw(3, length=64, level=0.5).masked[:16], draw(3, length=16, level=0.5).masked)
