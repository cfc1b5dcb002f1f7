"""Commit policies from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading_commands import Decoded


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        (("number", "--number", "1"), 7),
        (("number", "--number", "3"), 3),
        (("steps", "--steps", "2"), 2),
        (("entropy", "--entropy", "0"), 7),
        (("entropy", "--entropy", "100"), 1),
    ],
)
def test_other_policies(decoded: Decoded, trained: Path, policy: tuple[str, ...], passes: int) -> None:
    """Rows that no stop ends take two blocks: their passes, and the forward that writes the first."""
    asked = ("--mode", "diffusion", "--block-length", 8, "--policy", *policy)
    whole = [record for record in decoded(trained, *asked) if record["finish"] == "length"]
    assert whole
    assert all(record["forwards"] == 2 * passes + 1 for record in whole)
