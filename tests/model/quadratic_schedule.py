"""A noise schedule that the product does not have: everything that one has to bring, in a file of its own."""

from __future__ import annotations

from typing import Any


class QuadraticSchedule:
    """`p(t) = (1 - epsilon) t^2 + epsilon`, with the weight `p'(t) / p(t)`, which is not `1 / p`."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def probability(self, level: Any) -> Any:
        return (1 - self.epsilon) * level**2 + self.epsilon

    def loss_weight(self, probability: Any) -> Any:
        return 2 * ((1 - self.epsilon) * (probability - self.epsilon)) ** 0.5 / probability

    @property
    def mean_probability(self) -> float:
        return (1 - self.epsilon) / 3 + self.epsilon
