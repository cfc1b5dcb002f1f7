"""What torchrun says of this process, before torch is imported."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process among all; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))
