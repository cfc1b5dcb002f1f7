"""What torchrun has told this process, read without torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Global rank; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
