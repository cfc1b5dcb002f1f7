"""Runs on the pretended device: the losses of the CPU's, and what a step costs the host."""

from __future__ import annotations

from typing import Any

import pytest
from budget import STEPS
from rehearsals import MODEL, rehearsed
from tiny_runs import data_overrides, short_stages, write_token_set

MICRO_BATCHES = 2
# bf16 has 8 bits: a loss of 5 nats is a mean over a hundred logits with errors of 1/256 of their size.
RELATIVE = 4e-3
Run = dict[str, Any]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of 3 AR and 3 joint steps with validation and checkpoints between steps."""
    prefix = write_token_set(tmp_path_factory.mktemp("tokens") / "train", seed=1)
    hooks = ("validation.every=3", "validation.samples=4", "checkpoint.every=3")
    return [*MODEL, *data_overrides(prefix), *short_stages(3, 3), *hooks]


@pytest.fixture(scope="module")
def on_cpu(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    found: Run = rehearsed("run", "cpu", str(tmp_path_factory.mktemp("cpu")), words)
    return found


@pytest.fixture(scope="module")
def rehearsal(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    found: Run = rehearsed("run", "cuda", str(tmp_path_factory.mktemp("cuda")), words)
    return found


def test_losses_are_those_of_the_cpu(rehearsal: Run, on_cpu: Run) -> None:
    assert len(rehearsal["records"]) == 6
    for found, expected in zip(rehearsal["records"], on_cpu["records"], strict=True):
        losses = ("loss", "ar_loss") if found["stage"] == "ar" else ("loss", "ar_loss", "diffusion_loss")
        for key in losses:
            assert found[key] == pytest.approx(expected[key], rel=RELATIVE), (found["step"], key)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-2)
        for key in ("ar_tokens", "masked_tokens"):
            assert found[key] == expected[key]
        if "validation" in expected:
            assert found["validation"]["ar_loss"] == pytest.approx(expected["validation"]["ar_loss"], rel=RELATIVE)


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_stays_within_its_budget(kind: str, rehearsal: Run) -> None:
    """The second step of a stage, and what the loop does after it."""
    sections = rehearsal["sections"]
    steps = [index for index, section in enumerate(sections) if section["name"] == "step"]
    index = steps[{"ar": 1, "joint": 4}[kind]]
    for figure, (per_step, per_micro_batch) in STEPS[kind].items():
        spent = sections[index][figure] + sections[index + 1][figure]
        lines = "\n".join([*sections[index]["lines"], *sections[index + 1]["lines"]])
        assert spent <= per_step + MICRO_BATCHES * per_micro_batch, f"{figure} of a {kind} step: {spent}\n{lines}"
