"""Decoding on the pretended device in every mode: the CPU's tokens, and what a forward costs the host."""

from __future__ import annotations

from typing import Any

import pytest
from budget import CYCLE, FORWARDS
from rehearsals import rehearsed

MODES = ("ar", "diffusion", "linear", "quadratic")


@pytest.fixture(scope="module")
def rehearsal() -> dict[str, Any]:
    """In bf16, as on a GPU, and in fp32, where nothing is rounded otherwise than on the CPU."""
    found: dict[str, Any] = rehearsed("decode", "cuda", ["bf16", "fp32"])
    return found


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_the_cpu(mode: str, rehearsal: dict[str, Any], on_cpu: dict[str, Any]) -> None:
    assert rehearsal["fp32"][mode]["texts"] == on_cpu["fp32"][mode]["texts"]


@pytest.fixture(scope="module")
def on_cpu() -> dict[str, Any]:
    found: dict[str, Any] = rehearsed("decode", "cpu", ["fp32"])
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_forward_stays_within_its_budget(mode: str, rehearsal: dict[str, Any]) -> None:
    found = rehearsal["bf16"][mode]
    for figure, most in FORWARDS[mode].items():
        spent = found[figure] / found["forwards"]
        lines = "\n".join(found["lines"])
        assert spent <= most, f"{figure} of {mode}: {spent:.2f} in each of {found['forwards']} forwards\n{lines}"


@pytest.mark.parametrize("mode", MODES)
def test_a_cycle_is_copied_once_and_read_once(mode: str, rehearsal: dict[str, Any]) -> None:
    found = rehearsal["bf16"][mode]
    spent = {figure: found["of_a_cycle"][figure] for figure in CYCLE}
    lines = "\n".join(found["lines_of_cycles"])
    assert all(spent[figure] <= most for figure, most in CYCLE.items()), f"{mode}: {spent}\n{lines}"
    assert spent["syncs"] == 1, "the host reads the result of every cycle"


@pytest.mark.parametrize("mode", MODES)
def test_most_forwards_run_in_graphs(mode: str, rehearsal: dict[str, Any]) -> None:
    assert rehearsal["bf16"][mode]["graph_share"] > 0.5
