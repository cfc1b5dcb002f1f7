"""Whether two runs came to the same, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_runs import newest_checkpoint, records_of, saved_tensors

# What a clock decides.
TIMED = ("seconds", "tokens_per_second", "mfu", "seconds_left")


def assert_same_run(found: Path, expected: Path, message: str = "") -> None:
    """Equal weights, equal optimizer state, and each step once with equal values."""
    assert newest_checkpoint(found).name == newest_checkpoint(expected).name, message
    assert_same_tensors(newest_checkpoint(found), newest_checkpoint(expected), message)
    assert [untimed(record) for record in records_of(found)] == [untimed(record) for record in records_of(expected)], (
        message
    )


def assert_same_tensors(found: Path, expected: Path, message: str = "") -> None:
    """Equal weights and optimizer state of two checkpoints."""
    tensors, others = saved_tensors(found), saved_tensors(expected)
    assert tensors.keys() == others.keys(), message
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), f"{name} {message}"


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """A step's values without those that a clock decides."""
    return {name: value for name, value in record.items() if name not in TIMED}
