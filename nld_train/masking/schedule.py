"""Noise schedules: the masking probability at a noise level t, and the loss weight of a masked token.

To add one, write a class like `LinearSchedule` in its own file and add an entry to `SCHEDULES`. The key
`diffusion.schedule` selects it. Nothing here imports torch or numpy, so that a configuration can be checked without
them, and the methods work on numbers, arrays and tensors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from nld_train.masking.linear_schedule import LinearSchedule


class NoiseSchedule(Protocol):
    """A noise schedule. Levels are uniform in [0, 1], however the levels of a step depend on each other."""

    def probability(self, level: Any) -> Any:
        """Masking probability `p(t)`.

        Args:
            level: t in [0, 1]; a float, an array or a tensor.

        Returns:
            The same kind, in [0, 1]; it does not decrease with t.
        """

    def loss_weight(self, probability: Any) -> Any:
        """Weight of a masked token's negative log-likelihood, before the averaging (docs/method.md, "Objective").

        Args:
            probability: p with which the token was masked; a float, an array or a tensor, above 0.

        Returns:
            The same kind.
        """

    @property
    def mean_probability(self) -> float:
        """`E[p(t)]` over uniform t: the expected masked fraction of the maskable tokens."""


class ScheduleSettings(Protocol):
    """The keys of the configuration group `diffusion` that select the schedule."""

    @property
    def schedule(self) -> str:
        """A key of `SCHEDULES`."""

    @property
    def epsilon(self) -> float:
        """The smallest masking probability, in [0, 1)."""


# Schedules by name; each is constructed from the smallest masking probability.
SCHEDULES: dict[str, Callable[[float], NoiseSchedule]] = {"linear": LinearSchedule}


def noise_schedule(settings: ScheduleSettings) -> NoiseSchedule:
    """The schedule that the settings select; the configuration has been checked against `SCHEDULES`.

    Raises:
        KeyError: there is no schedule of that name.
    """
    return SCHEDULES[settings.schedule](settings.epsilon)
