"""The rank that torchrun has given this process, read without torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Global rank; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))
