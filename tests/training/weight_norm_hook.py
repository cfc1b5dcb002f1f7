"""A hook that is in one file and in no table: it measures the weights of one stage."""

from __future__ import annotations

from typing import Any

from nld_train.config.plan import StagePlan
from nld_train.training.hooks.base import Hook, RunningStage, at_interval
from nld_train.training.metrics.records import StepRecord


class WeightNormHook(Hook):
    """Records a number and numbers under names, without a class for their form."""

    def due(self, plan: StagePlan, stage_step: int) -> bool:
        return plan.kind.noisy_stream and at_interval(2, stage_step, plan.steps)

    def run(self, model: list[Any], stage: RunningStage, record: StepRecord) -> None:
        norms = {name: float(weight.detach().norm()) for name, weight in model[0].module.named_parameters()}
        record.add("weight_norm", sum(norm**2 for norm in norms.values()) ** 0.5)
        record.add("norms", {"smallest": min(norms.values()), "largest": max(norms.values())})
