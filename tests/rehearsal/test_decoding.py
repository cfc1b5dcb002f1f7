"""Decoding on the pretended device in every mode: the CPU's tokens, and what a forward costs the host."""

from __future__ import annotations

from typing import Any

import pytest
from budget import FORWARDS
from rehearsals import rehearsed

MODES = ("ar", "diffusion", "linear", "quadratic")


@pytest.fixture(scope="module")
def rehearsal() -> dict[str, Any]:
    """In bf16, as on a GPU."""
    found: dict[str, Any] = rehearsed("decode", "cuda", [])
    return found


@pytest.fixture(scope="module")
def exact() -> tuple[dict[str, Any], dict[str, Any]]:
    """In fp32, on the pretended device and on the CPU: the same tokens, as nothing is rounded otherwise."""
    return rehearsed("decode", "cuda", ["execution.precision=fp32"]), rehearsed("decode", "cpu", [])


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_the_cpu(mode: str, exact: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, expected = exact
    assert found[mode]["texts"] == expected[mode]["texts"]


@pytest.mark.parametrize("mode", MODES)
def test_a_forward_stays_within_its_budget(mode: str, rehearsal: dict[str, Any]) -> None:
    found = rehearsal[mode]
    for figure, most in FORWARDS[mode].items():
        spent = found[figure] / found["forwards"]
        lines = "\n".join(found["lines"])
        assert spent <= most, f"{figure} of {mode}: {spent:.2f} in each of {found['forwards']} forwards\n{lines}"
