"""Documents of random ids."""

from __future__ import annotations

import numpy as np


def random_documents(seed: int, count: int, longest: int = 40) -> list[list[int]]:
    """Documents of 1 to `longest` ids in 4..259, each ending with 2."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest, count)
    return [[*generator.integers(4, 260, length - 1).tolist(), 2] for length in lengths]
