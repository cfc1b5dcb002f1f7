"""The metric `ranks`: what is measured on each rank, at which steps, and when the console names a slow one."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nld_train.training.loop import timers as timers_module
from nld_train.training.loop.rank_times import RankTimes
from nld_train.training.loop.timers import Timers
from nld_train.training.metrics.ranks_metric import RanksMetric, percentiles
from nld_train.training.metrics.registry import MetricTable

CPU = torch.device("cpu")


def test_percentiles() -> None:
    """`p90` is the smallest value that nine of ten ranks do not exceed."""
    seconds = [0.5, 0.1, 0.9, *(0.2 for _ in range(17))]
    nodes = [f"node{rank // 8}" for rank in range(20)]
    found = percentiles(seconds, nodes)
    assert found == {"min": 0.1, "median": 0.2, "p90": 0.2, "max": 0.9, "rank": 2, "node": "node0"}
    assert percentiles([3.0, 1.0], ["a", "b"])["p90"] == 3.0
    for count in range(1, 30):
        values = [float(value) for value in range(count)]
        p90 = percentiles(values, ["a"] * count)["p90"]
        assert sum(value <= p90 for value in values) >= 0.9 * count
        assert sum(value < p90 for value in values) < 0.9 * count
        assert percentiles(values, ["a"] * count)["median"] == median(values)


class Clock:
    """Seconds that go on with each look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(timers_module.time, "perf_counter", self.look)

    def look(self) -> float:
        self.seconds += 1
        return self.seconds


def make_pass(timers: Timers, name: str) -> None:
    timers(name, log_level=2).start()
    timers(name).stop()


def test_passes_are_timed_while_they_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, timers = Clock(monkeypatch), Timers(CPU)
    make_pass(timers, "forward-compute")
    assert clock.seconds == 0, "otherwise no time is read"
    for _ in range(2):
        timers.watch_passes(True)
        for name in ("forward-compute", "backward-compute", "forward-recv", "forward-backward"):
            make_pass(timers, name)
        assert timers.pass_seconds() == 2
    timers.watch_passes(False)
    make_pass(timers, "backward-compute")
    assert clock.seconds == 8


class Event:
    """A CUDA event that knows its time when it was recorded."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.now += 250
        self.milliseconds = Event.now

    def synchronize(self) -> None:
        self.waited_for = True

    def elapsed_time(self, end: Event) -> float:
        return end.milliseconds - self.milliseconds


def test_on_a_gpu_passes_are_timed_in_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits for the last pass alone, and not before it is asked for their time."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timers = Timers(torch.device("cuda", 0))
    timers.watch_passes(True)
    for name in ("forward-compute", "backward-compute", "all-grads-sync"):
        make_pass(timers, name)
    ends = [end for _, end in timers._passes or []]
    assert not any(hasattr(end, "waited_for") for end in ends)
    assert timers.pass_seconds() == 0.5
    assert [hasattr(end, "waited_for") for end in ends] == [False, True]


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Another rank on `node1`, which needs three times as long; returns what is gathered."""
    gathered: list[torch.Tensor] = []

    def gather(every: list[torch.Tensor], own: torch.Tensor, group: Any) -> None:
        del group
        gathered.append(own.clone())
        for rank, received in enumerate(every):
            received.copy_((1 + 2 * rank) * own)

    def name_nodes(nodes: list[Any], own: str) -> None:
        nodes[:] = ["node0", "node1"]

    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(dist, "all_gather_object", name_nodes)
    monkeypatch.setattr(dist, "all_gather", gather)
    return gathered


def test_ranks_are_measured_at_logged_steps_alone(
    two_ranks: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    timers = Timers(CPU)
    times = RankTimes(3, timers, CPU)
    found = []
    for step in range(1, 7):
        times.begin(step)
        make_pass(timers, "forward-compute")
        found.append(times.end(step, data_seconds=0.25, step_seconds=2.0))
    assert [value is not None for value in found] == [False, False, True, False, False, True]
    assert [own.tolist() for own in two_ranks] == [[1.0, 0.25, 2.0]] * 2
    assert found[2] == {
        "passes": {"min": 1, "median": 2, "p90": 3, "max": 3, "rank": 1, "node": "node1"},
        "data": {"min": 0.25, "median": 0.5, "p90": 0.75, "max": 0.75, "rank": 1, "node": "node1"},
        "step": {"min": 2, "median": 4, "p90": 6, "max": 6, "rank": 1, "node": "node1"},
    }


def test_one_process_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 1)
    times = RankTimes(1, Timers(CPU), CPU)
    times.begin(1)
    assert times.end(1, 0.1, 0.2) is None


def times_of(passes: list[float], data: list[float]) -> dict[str, Any]:
    nodes = [f"node{rank // 2}" for rank in range(len(passes))]
    return {
        name: percentiles(seconds, nodes) for name, seconds in (("passes", passes), ("data", data), ("step", passes))
    }


def test_the_console_names_a_rank_that_keeps_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    metric = MetricTable()["ranks"]
    assert isinstance(metric, RanksMetric)
    even = times_of([1.0, 1.1, 1.05, 1.15], [0.001, 0.008, 0.001, 0.001])
    assert metric.lines(even) == []
    slow = times_of([1.0, 1.0, 1.0, 1.5], [0.1, 0.1, 0.4, 0.1])
    (line,) = metric.lines(slow)
    assert line.strip().split("  ") == [
        "slow",
        "passes of rank 3 on node1 1.50 s, median 1.00 s",
        "data of rank 2 on node1 0.40 s, median 0.10 s",
    ]
    # Four times the median, but nothing beside the step.
    assert metric.lines(times_of([1.0, 1.0, 1.0, 1.0], [0.01, 0.01, 0.04, 0.01])) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert metric.lines(times_of([1.0, 1.5], [0.1, 0.1])) == []


def test_it_is_shown_like_every_metric() -> None:
    metric, value = MetricTable()["ranks"], times_of([1.0, 2.0], [0.25, 0.5])
    record = {"step": 4, "tokens": 100, "ranks": value}
    assert metric.can_show(record)
    assert not metric.can_show({**record, "ranks": {"passes": 3}})
    (panel,) = metric.panels([record])
    assert [curve.points for curve in panel.curves] == [[(100, 1.5)], [(100, 2.0)], [(100, 0.375)], [(100, 0.5)]]
    logged = metric.wandb_values(value)
    assert logged["ranks/passes/max"] == 2.0
    assert "ranks/passes/node" not in logged
    assert metric.status_text(metric.status(record)) == ("ranks", "passes 1.5 s, at most 2 s: rank 1 on node0")
