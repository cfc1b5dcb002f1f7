"""The numbers that every step measures: their form in the console line, their curves and their summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nld_train.progress import duration
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import Curve, Metric, Panel, human


class StepNumber(Metric):
    """A number of each step, or None where it is not known or the stage has no such term.

    Args:
        name: the key.
        form: makes its part of the console line; None for none.
        panel: makes its panel of the report from all records; None for none.
        summarised: whether the summary of a stage has its first and last means.
        importance: see `Metric`.
    """

    def __init__(
        self,
        name: str,
        form: Callable[[Any], str] | None = None,
        panel: Callable[[Sequence[Record]], Panel] | None = None,
        summarised: bool = False,
        importance: int = 0,
    ) -> None:
        super().__init__(name)
        self.importance = importance
        self._form, self._panel, self._summarised = form, panel, summarised

    def step_text(self, value: Any) -> str | None:
        """See `Metric.step_text`."""
        return None if self._form is None or value is None else self._form(value)

    def panels(self, records: Sequence[Record]) -> list[Panel]:
        """See `Metric.panels`."""
        return [] if self._panel is None else [self._panel(records)]

    def summary(self, records: Sequence[Record]) -> Record:
        """See `Metric.summary`; also where every value is None."""
        if not self._summarised:
            return {}
        return {f"first_{self.name}": None, f"last_{self.name}": None} | super().summary(records)


def curve(records: Sequence[Record], name: str, label: str = "", noisy: bool = True, **style: Any) -> Curve:
    """A number over tokens, without the steps at which it is None."""
    points = [(record["tokens"], record[name]) for record in records if record[name] is not None]
    return Curve(label, points, style, noisy)


def _losses(records: Sequence[Record]) -> Panel:
    names = (("loss", "total"), ("ar_loss", "AR"), ("diffusion_loss", "diffusion"))
    return Panel("nats per token", [curve(records, name, label) for name, label in names], title="Training loss")


def _rate_and_gradient(records: Sequence[Record]) -> Panel:
    gradient = Panel("gradient norm", [curve(records, "grad_norm", "gradient norm", color="tab:red")])
    rate = curve(records, "learning_rate", "learning rate", noisy=False, color="tab:blue")
    return Panel("learning rate", [rate], right=gradient, title="Learning rate and gradient norm")


def _speed(records: Sequence[Record]) -> Panel:
    return Panel("tokens per second", [curve(records, "tokens_per_second")], title="Speed of training")


# In the order of a record, which is the order in the console line. Its stage and step begin the line.
STEP_NUMBERS: tuple[StepNumber, ...] = (
    StepNumber("stage"),
    StepNumber("step"),
    StepNumber("stage_step"),
    StepNumber("tokens", lambda tokens: f"tokens {human(tokens)}", importance=1),
    StepNumber("step_tokens"),
    StepNumber("loss", "loss {:.4f}".format, _losses, importance=9),
    StepNumber("ar_loss", "ar {:.4f}".format, summarised=True, importance=7),
    StepNumber("diffusion_loss", "diff {:.4f}".format, summarised=True, importance=6),
    StepNumber("ar_weight"),
    StepNumber("alpha"),
    StepNumber("ar_tokens"),
    StepNumber("maskable_tokens"),
    StepNumber("masked_tokens"),
    StepNumber("ar_denominator"),
    StepNumber("diffusion_denominator"),
    StepNumber("grad_norm", "grad {:.3f}".format, importance=4),
    StepNumber("learning_rate", "lr {:.2e}".format, _rate_and_gradient, importance=3),
    StepNumber("seconds"),
    StepNumber("tokens_per_second", lambda speed: f"{human(speed)} tok/s", _speed, importance=5),
    StepNumber("mfu", "mfu {:.1%}".format, importance=2),
    StepNumber("seconds_left", lambda seconds: f"{duration(seconds)} left", importance=8),
)
