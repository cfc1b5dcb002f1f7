"""Decoding during training under every layout: the same record, and unchanged weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import run_ranks
from runs_that_decode import assert_same_training, decodings, train
from tiny_runs import records_of

# tests/distributed also decodes under every layout, in every test run.
pytestmark = pytest.mark.long
WORKER = Path(__file__).with_name("layout_worker.py")
LAYOUTS = {
    "tensor": ("parallel.tensor=2", "parallel.sequence=true", "execution.recompute=full"),
    "pipeline": ("parallel.pipeline=2", "parallel.virtual_pipeline=2"),
    "context": ("parallel.context=2",),
    "data": ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
}


@pytest.fixture(scope="module")
def still(settings: tuple[str, ...], trained: Path) -> tuple[str, ...]:
    """Trains one step with rates near 0: layouts differ by rounding, which Adam's first steps make large."""
    rates = [f"stages.joint.schedule.{rate}=1e-30" for rate in ("learning_rate", "final_learning_rate")]
    return (*settings, f"init.checkpoint={trained}", "run.stages=[joint]", "stages.joint.tokens=192", *rates)


# Layouts in which a run that decodes is compared with one that does not, while weights change.
COMPARED = ("tensor", "pipeline", "data")


@pytest.fixture(scope="module")
def moving(settings: tuple[str, ...], trained: Path) -> tuple[str, ...]:
    """Trains three steps and decodes after each, a few tokens only."""
    stage = (f"init.checkpoint={trained}", "run.stages=[joint]", f"stages.joint.tokens={3 * 192}")
    return (*settings, *stage, "evaluation.every=1", "evaluation.prompts=2", "evaluation.max_new_tokens=6")


@pytest.fixture(scope="module")
def by_layout(
    still: tuple[str, ...], moving: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Runs of two processes in each layout; one group of processes makes them all."""
    folder = tmp_path_factory.mktemp("layouts")
    runs = {name: ([*still, *layout], True) for name, layout in LAYOUTS.items()}
    for name in COMPARED:
        runs |= {f"{name} {hooked}": ([*moving, *LAYOUTS[name]], hooked) for hooked in (True, False)}
    runs["waiting"] = ([*moving], True)
    described = [
        {"overrides": [*overrides, f"run.dir='{folder / name}'"], "hooked": hooked}
        for name, (overrides, hooked) in runs.items()
    ]
    (folder / "runs.json").write_text(json.dumps(described))
    done = run_ranks(2, [str(WORKER), str(folder / "runs.json")], timeout=500)
    (folder / "output").write_text(done.output)
    assert done.status == 0, done.output[-6000:]
    return {name: folder / name for name in runs}


@pytest.fixture(scope="module")
def alone(still: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(*still, f"run.dir={tmp_path_factory.mktemp('alone')}", hooked=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_decodes_the_same(by_layout: dict[str, Path], alone: Path, layout: str) -> None:
    assert list(decodings(alone)) == [1]
    assert decodings(by_layout[layout]) == decodings(alone)


@pytest.mark.parametrize("layout", COMPARED)
def test_decoding_changes_no_weight_in_any_layout(by_layout: dict[str, Path], layout: str) -> None:
    hooked, plain = by_layout[f"{layout} True"], by_layout[f"{layout} False"]
    assert list(decodings(hooked)) == [1, 2, 3]
    assert not decodings(plain)
    assert_same_training(hooked, plain)
    losses = [record["loss"] for record in records_of(hooked)]
    assert len(set(losses)) == 3


def test_weights_that_are_still_on_their_way_are_waited_for(by_layout: dict[str, Path]) -> None:
    """With `overlap_param_gather` a step's weights reach the other ranks during the next forward pass."""
    assert decodings(by_layout["data True"]) == decodings(by_layout["waiting"])
    assert len({json.dumps(record) for record in decodings(by_layout["waiting"]).values()}) == 3


def test_what_is_shown(by_layout: dict[str, Path], alone: Path) -> None:
    printed = (by_layout["tensor"].parent / "output").read_text()
    (record,) = [record["decoding"] for record in records_of(by_layout["tensor"])]
    for mode, figures in record["modes"].items():
        assert f"{mode:<9}  {figures['tokens_per_forward']:.2f} tokens/forward" in printed
    linear = record["modes"]["linear"]
    shares = " ".join(f"{position}:{linear['acceptance'][position]:.0%}" for position in ("1", "2", "3"))
    assert f"accepted length {linear['accepted_length']:.2f}  by position {shares}" in printed
    assert f"agreement  diffusion/linear {record['agreements']['diffusion/linear']:.0%}" in printed
    assert f"ar, linear, quadratic: {record['samples'][0]['ar']!r}" in printed
    assert "decoding is" in printed
    assert f"joint, linear: {linear['tokens_per_forward']:.2f} tokens per forward, agreement 1.00" in printed
