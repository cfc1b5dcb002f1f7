"""The linear noise schedule, `p(t) = (1 - epsilon) t + epsilon` (docs/method.md, "Noise")."""

from __future__ import annotations

from typing import Any


class LinearSchedule:
    """Masking probability that grows linearly from epsilon at level 0 to 1 at level 1.

    Args:
        epsilon: smallest masking probability, in [0, 1); it bounds the loss weight by 1 / epsilon.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def probability(self, level: Any) -> Any:
        """`p(t)` of levels t in [0, 1]."""
        return (1.0 - self.epsilon) * level + self.epsilon

    def loss_weight(self, probability: Any) -> Any:
        """`1 / p`."""
        return 1 / probability

    @property
    def mean_probability(self) -> float:
        """`(1 + epsilon) / 2`."""
        return (1 + self.epsilon) / 2
