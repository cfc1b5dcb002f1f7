"""A hook in which rank 1 hangs, once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nld_train.config.plan import StagePlan
from nld_train.training.hooks.base import Hook, RunningStage
from nld_train.training.metrics.records import StepRecord


class HangingHook(Hook):
    """Writes down that it hangs, and sleeps for an hour, after step 2 of a run that has not hung yet."""

    def due(self, plan: StagePlan, stage_step: int) -> bool:
        return stage_step == 2

    def run(self, model: list[Any], stage: RunningStage, record: StepRecord) -> None:
        hung = Path(self.config.run.dir) / "hung"
        if dist.get_rank() == 1 and not hung.exists():
            hung.write_text(f"after step {record.values['step']}")
            time.sleep(3600)
