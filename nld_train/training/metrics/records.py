"""The measurements of one step: a line of `metrics.jsonl`, whose keys are explained in docs/training.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch.distributed as dist

from nld_train.config.counts import remaining_flops, step_flops
from nld_train.config.plan import StagePlan, tokens_per_step
from nld_train.config.schema import Config
from nld_train.training.metrics.jsonl import Record


class StepRecord:
    """The record of one optimizer step.

    Args:
        values: what the step itself measured.

    Attributes:
        values: all keys of the step.
        between: the keys that were added after the step, in order.
    """

    def __init__(self, values: Record) -> None:
        self.values = values
        self.between: list[str] = []

    def add(self, name: str, value: Any) -> None:
        """Records a metric that was measured after the step. It then is in `metrics.jsonl` and everywhere else.

        Args:
            name: a key that the step does not have yet.
            value: of a form that JSON has. Numbers, and numbers under names at any depth, need nothing else; for
                another form see `metrics.metric.Metric`.
        """
        assert name not in self.values, f"{name} is already recorded"
        self.values[name] = value
        self.between.append(name)


def step_record(
    config: Config,
    plan: StagePlan,
    stage_step: int,
    measures: Record,
    learning_rate: float,
    seconds: float,
    seconds_per_flop: Sequence[float],
    peak: float | None,
) -> StepRecord:
    """The record of the last step.

    Args:
        config: the run.
        plan: of the stage.
        stage_step: of the stage, from 1.
        measures: what the stage's trainer measured.
        learning_rate: of this step.
        seconds: of this step, its wait for data included.
        seconds_per_flop: seconds by expected operation of the last steps, which may be those of another stage.
        peak: operations per second of a device, or None.
    """
    step, tokens = plan.first_step + stage_step, tokens_per_step(config)
    flops = step_flops(config, plan.stage) / (seconds * dist.get_world_size())
    values = {
        "stage": plan.name,
        "step": step,
        "stage_step": stage_step,
        "tokens": step * tokens,
        "step_tokens": tokens,
        **measures,
        "learning_rate": learning_rate,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": None if peak is None else flops / peak,
        # By operations: a step of a joint stage has more than twice those of an AR stage.
        "seconds_left": remaining_flops(config, step) * median(seconds_per_flop),
    }
    return StepRecord(values)
