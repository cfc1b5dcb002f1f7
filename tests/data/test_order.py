"""The order is a pure function of the configuration: a permutation in each epoch, in the blend's proportions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nld_train.config.schema import SourceConfig
from nld_train.data.order import BLEND_PERIOD, Blend, make_order, stage_orders
from nld_train.data.permutation import permute, permute_many, round_keys
from nld_train.errors import UserError


@dataclass(frozen=True)
class FakeSet:
    """A set of which only the size matters."""

    fingerprint: str
    samples: int
    sequence_length: int = 8

    @property
    def prefix(self) -> str:
        return self.fingerprint

    def __len__(self) -> int:
        return self.samples


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 4095, 4097, 20906])
def test_permutation_is_a_bijection(size: int) -> None:
    keys = round_keys(1, "set", 0)
    images = [permute(index, size, keys) for index in range(size)]
    assert sorted(images) == list(range(size))
    assert permute_many(np.arange(size), size, keys).tolist() == images


def test_permutation_reaches_beyond_32_bits() -> None:
    size = 10**12
    images = [permute(index, size, round_keys(1, "set", 0)) for index in range(1000)]
    assert len(set(images)) == 1000
    assert max(images) < size
    assert 0.45 < np.mean(images) / size < 0.55
    assert permute_many(np.arange(1000), size, round_keys(1, "set", 0)).tolist() == images


def test_permutations_differ_by_seed_set_and_epoch_and_look_random() -> None:
    size = 1000
    keys = [round_keys(1, "a", 0), round_keys(1, "a", 1), round_keys(2, "a", 0), round_keys(1, "b", 0)]
    images = [np.array([permute(index, size, key) for index in range(size)]) for key in keys]
    for first in range(len(images)):
        assert abs(np.corrcoef(np.arange(size), images[first])[0, 1]) < 0.15
        assert abs(np.corrcoef(images[first][1:], images[first][:-1])[0, 1]) < 0.15
        for second in range(first):
            assert (images[first] == images[second]).sum() < 10


def test_small_permutations_are_close_to_uniform() -> None:
    """Over many epochs each of 5 samples comes first about equally often: tiny sets are shuffled too."""
    first = Counter(permute(0, 5, round_keys(0, "set", epoch)) for epoch in range(2000))
    assert all(300 < first[index] < 500 for index in range(5))


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [0.7, 0.3], [5, 1e-9], [0.1, 0.2, 0.3, 0.4], [1e6, 1, 3.3e5]])
def test_blend_proportions_hold_over_every_stretch(weights: list[float]) -> None:
    blend = Blend(weights)
    seen = [0] * len(weights)
    total = sum(weights)
    for sample_index in range(2 * blend.period + 7):
        if sample_index % 499 == 0:
            assert blend.consumed(sample_index) == seen
        chosen, index = blend.locate(sample_index)
        assert index == seen[chosen]
        seen[chosen] += 1
        exact = [count / blend.period * (sample_index + 1) for count in blend.counts]
        assert max(abs(a - b) for a, b in zip(seen, exact, strict=True)) < len(weights)
    for count, weight in zip(blend.counts, weights, strict=True):
        assert count >= 1
        assert abs(count / blend.period - weight / total) <= len(weights) / BLEND_PERIOD


def test_a_single_set_is_the_identity() -> None:
    assert [Blend([0.3]).locate(index) for index in range(5)] == [(0, index) for index in range(5)]


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [float("nan")], [float("inf"), 1]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="positive weights"):
        Blend(weights)


def order_of(seed: int = 1, **starts: int) -> Any:
    sets: Any = {"a": FakeSet("a", 30), "b": FakeSet("b", 11)}
    return make_order(seed, [SourceConfig("a", 2), SourceConfig("b", 1)], sets, starts)


def test_random_access_equals_sequential() -> None:
    first, order = order_of(), order_of()
    sequential = [first.locate(index) for index in range(300)]
    for index in np.random.default_rng(0).permutation(300):
        assert order.locate(int(index)) == sequential[index]


def test_each_epoch_sees_every_sample_once_in_another_order() -> None:
    order = order_of()
    of_a = [index for chosen, index in map(order.locate, range(180)) if chosen == 0]
    epochs = [of_a[begin : begin + 30] for begin in range(0, 120, 30)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_fingerprint_changes_with_what_changes_the_order() -> None:
    assert order_of().fingerprint == order_of().fingerprint
    assert len({order_of().fingerprint, order_of(seed=2).fingerprint, order_of(a=5).fingerprint}) == 3


def stages(**data_start: str) -> Any:
    source = (SourceConfig("a", 2), SourceConfig("b", 1))
    return SimpleNamespace(
        run=SimpleNamespace(seed=1),
        data=SimpleNamespace(train=source),
        batch=SimpleNamespace(sequence_length=8),
        stages={name: SimpleNamespace(train=None, data_start=start) for name, start in data_start.items()},
    )


def test_a_stage_goes_on_where_the_one_before_stopped() -> None:
    sets: Any = {"a": FakeSet("a", 30), "b": FakeSet("b", 11)}

    def open_one(config: Any, stage: str, prefix: str) -> Any:
        return sets[prefix]

    plans = [SimpleNamespace(name="ar", samples=40), SimpleNamespace(name="joint", samples=50)]
    orders = stage_orders(stages(ar="continue", joint="continue"), plans, open_one)
    one_stage = order_of()
    # 40 is no multiple of the blend's period of 3, so the sets interleave anew; each set by itself just goes on.
    for chosen in (0, 1):
        together = [orders["ar"].locate(k) for k in range(40)] + [orders["joint"].locate(k) for k in range(50)]
        expected = [one_stage.locate(k) for k in range(120)]
        own = [index for number, index in together if number == chosen]
        assert own == [index for number, index in expected if number == chosen][: len(own)]
    anew = stage_orders(stages(ar="continue", joint="beginning"), plans, open_one)
    assert anew["joint"].starts == (0, 0)


def test_a_set_that_occurs_twice_is_refused() -> None:
    sets: Any = {"a": FakeSet("a", 30)}
    with pytest.raises(UserError, match="occurs twice"):
        make_order(1, [SourceConfig("a", 1), SourceConfig("a", 2)], sets)


@pytest.mark.parametrize("sizes", [(7,), (5, 9), (30, 2, 11)])
def test_samples_before_a_repetition_are_counted(sizes: tuple[int, ...]) -> None:
    sources = [SourceConfig(str(number), number + 1.0) for number in range(len(sizes))]
    sets: Any = {str(number): FakeSet(str(number), size) for number, size in enumerate(sizes)}
    order = make_order(3, sources, sets)
    most = order.samples_before_repetition(100)
    assert 0 < most < sum(sizes) + 1
    assert len({order.locate(index) for index in range(most)}) == most
    # The next index begins a set's next epoch, whichever sample of it comes first.
    chosen, _ = order.locate(most)
    assert [order.locate(index)[0] for index in range(most)].count(chosen) == sizes[chosen]
    assert order.samples_before_repetition(most) == most
