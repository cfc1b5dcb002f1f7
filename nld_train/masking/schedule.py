"""Noise schedules: what a noise level t means for the tokens, and what a masked token weighs in the loss.

To add one, write a class like `LinearSchedule` in a file of its own and give it an entry in `SCHEDULES`. The key
`diffusion.schedule` selects it. Nothing here imports torch or numpy, so that a configuration can be checked anywhere,
and the methods work on numbers, arrays and tensors alike.
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
        """A name of `SCHEDULES`."""

    @property
    def epsilon(self) -> float:
        """The smallest masking probability, in [0, 1)."""


# Schedules by name; each is made from its smallest masking probability.
SCHEDULES: dict[str, Callable[[float], NoiseSchedule]] = {"linear": LinearSchedule}


def noise_schedule(settings: ScheduleSettings) -> NoiseSchedule:
    """The schedule of some settings, which are checked against `SCHEDULES` when a configuration is read.

    Raises:
        KeyError: there is none of that name.
    """
    return SCHEDULES[settings.schedule](settings.epsilon)
