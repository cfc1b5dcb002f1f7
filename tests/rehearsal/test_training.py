"""Runs on the pretended device: the losses of the CPU's, and what a step costs the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from budget import STEPS
from rehearsals import MODEL, Run, rehearsed
from tiny_runs import data_overrides, short_stages, write_token_set

MICRO_BATCHES = 2
# bf16 has 8 bits: weights of 0.2 have steps of 1e-3, to which each update of 2e-3 is rounded.
RELATIVE = 1.5e-2
# Of a run of 2 AR and 3 joint steps: those with a plain loop after them, without a hook, and long after a save.
PLAIN = {"ar": 1, "joint": 4}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of 2 AR and 3 joint steps; validation and checkpoints are at the end of each stage."""
    prefix = write_token_set(tmp_path_factory.mktemp("tokens") / "train", seed=1)
    return [*MODEL, *data_overrides(prefix), *short_stages(2, 3), "validation.every=9", "validation.samples=4"]


@pytest.fixture(scope="module")
def on_cpu(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    found: dict[str, Run] = rehearsed("runs", "cpu", str(tmp_path_factory.mktemp("cpu")), {"run": words})
    return found["run"]


@pytest.fixture(scope="module")
def rehearsal(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    found: dict[str, Run] = rehearsed("runs", "cuda", str(tmp_path_factory.mktemp("cuda")), {"run": words})
    return found["run"]


def assert_same_losses(found: Run, expected: Run, relative: float = RELATIVE) -> None:
    """Up to the rounding of bf16 on one side; the samples and their noise are the same."""
    assert len(found["records"]) == len(expected["records"])
    for step, other in zip(found["records"], expected["records"], strict=True):
        for key in ("ar_tokens", "masked_tokens"):
            assert step.get(key) == other.get(key)
        losses = {key for key in ("loss", "ar_loss", "diffusion_loss") if other[key] is not None}
        for key in losses:
            assert step[key] == pytest.approx(other[key], rel=relative), (step["stage"], step["step"], key)
        assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.1)
        if "validation" in other:
            expected_loss = other["validation"]["ar_loss"]
            assert step["validation"]["ar_loss"] == pytest.approx(expected_loss, rel=relative)


def test_losses_are_those_of_the_cpu(rehearsal: Run, on_cpu: Run) -> None:
    assert len(on_cpu["records"]) == 5
    assert_same_losses(rehearsal, on_cpu)


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_stays_within_its_budget(kind: str, rehearsal: Run) -> None:
    """A step, and what the loop does after it."""
    sections = rehearsal["sections"]
    step = [index for index, section in enumerate(sections) if section["name"] == "step"][PLAIN[kind] - 1]
    spent = sections[step : step + 2]
    assert [section["name"] for section in spent] == ["step", "loop"]
    for figure, (per_step, per_micro_batch) in STEPS[kind].items():
        total = sum(section[figure] for section in spent)
        lines = "\n".join(line for section in spent for line in section["lines"])
        assert total <= per_step + MICRO_BATCHES * per_micro_batch, f"{figure} of a step of {kind}: {total}\n{lines}"


@pytest.mark.long
def test_every_copy_is_needed(words: list[str], tmp_path: Path) -> None:
    """The rehearsal finds each one that is left out."""
    short = [*words, *short_stages(1, 1), "validation.every=0"]
    outcomes: dict[str, str] = rehearsed("forgotten_copies", str(tmp_path), short)
    assert outcomes
    unnoticed = [where for where, error in outcomes.items() if not error]
    assert not unnoticed, unnoticed
