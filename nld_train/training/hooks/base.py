"""The interface of hooks: an object that evaluates the model between two steps and records what it measures."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nld_train.config.hooks import HOOKS
from nld_train.config.plan import StagePlan
from nld_train.config.schema import Config
from nld_train.model.rotary import RotaryEmbedding
from nld_train.registry import find
from nld_train.training.metrics.metric import Metric
from nld_train.training.metrics.records import StepRecord
from nld_train.training.stages.kind import StageTrainer


@dataclass(frozen=True)
class RunningStage:
    """The current stage of a run.

    Attributes:
        plan: its steps and settings, and its kind (`StageKind`).
        trainer: of the stage, on this process.
    """

    plan: StagePlan
    trainer: StageTrainer


class Hook(ABC):
    """Runs at steps of its own choice, on every rank, and changes nothing in training.

    A new hook is one file with a subclass and one entry in `config.hooks`.

    Args:
        config: the run.
        rotary: the rotary embedding of the model, on its device.

    Attributes:
        metrics: how the values that it records are shown, where the default for numbers does not suit them and
            `training.metrics.registry` does not list them.
    """

    metrics: ClassVar[Sequence[Metric]] = ()

    def __init__(self, config: Config, rotary: RotaryEmbedding) -> None:
        self.config = config
        self.rotary = rotary

    @abstractmethod
    def due(self, plan: StagePlan, stage_step: int) -> bool:
        """Whether it runs after this step of a stage; the same on every rank."""

    @abstractmethod
    def run(self, model: list[Any], stage: RunningStage, record: StepRecord) -> None:
        """Measures, and calls `record.add(name, value)` for each value.

        Args:
            model: this rank's chunks, wrapped; all their weights are up to date.
            stage: the current one.
            record: of the last step.
        """


def make_hooks(config: Config, rotary: RotaryEmbedding) -> list[Hook]:
    """The hooks of a run, in the order of `run.hooks`, which is the order in which they run.

    Raises:
        UserError: one is unknown or cannot be imported.
    """
    return [find(name, HOOKS, "run.hooks")(config, rotary) for name in config.run.hooks]


def at_interval(every: int, stage_step: int, stage_steps: int) -> bool:
    """Whether a step is a multiple of `every`, or the last one of the stage; False if `every` is 0."""
    return every > 0 and (stage_step % every == 0 or stage_step == stage_steps)


class TimeShare:
    """Adds up the time of one kind of measurement, from the start of this process's run on."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._spent = 0.0

    def since(self, begin: float) -> dict[str, float]:
        """Counts a measurement that has just ended.

        Args:
            begin: `time.perf_counter()` at its beginning.

        Returns:
            Its `seconds`; and `share`, all such seconds over the time since this start of the run, from 0 to 1.
        """
        now = time.perf_counter()
        self._spent += now - begin
        return {"seconds": now - begin, "share": self._spent / (now - self._begin)}
