"""Losses on held-out data under fixed noise, so that their curves can be compared from step to step."""

from __future__ import annotations

import time
from typing import Any

from megatron.core import parallel_state

from nld_train.config.plan import StagePlan
from nld_train.config.schema import Config
from nld_train.data.batches import batches
from nld_train.data.collate import Samples
from nld_train.data.samples import validation_samples
from nld_train.model.accelerator import forget_pending_amaxes
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.hooks.base import Hook, RunningStage, TimeShare, at_interval
from nld_train.training.metrics.records import StepRecord


class ValidationHook(Hook):
    """Records `validation`: the losses on this run's held-out samples, in nats per token.

    `ar_loss` is the next-token loss on the clean stream, `diffusion_loss` by noise level the mean cross-entropy of the
    masked tokens, not weighted by 1/p; empty where the stage has no noisy stream.

    Args:
        config: the run; the keys under `validation` are its settings.
        rotary: see `Hook`.
    """

    def __init__(self, config: Config, rotary: RotaryEmbedding) -> None:
        super().__init__(config, rotary)
        self._samples: dict[tuple[str, float | None], list[Samples]] = {}
        self._time = TimeShare()

    def due(self, plan: StagePlan, stage_step: int) -> bool:
        """See `Hook.due`: at the interval and at the stage's end, in a stage whose kind has validation levels."""
        measured = bool(plan.kind.validation_levels(self.config))
        return measured and at_interval(self.config.validation.every, stage_step, plan.steps)

    def run(self, model: list[Any], stage: RunningStage, record: StepRecord) -> None:
        """See `Hook.run`."""
        begin = time.perf_counter()
        ar_loss, diffusion_loss = self.losses(model, stage)
        record.add("validation", {"ar_loss": ar_loss, "diffusion_loss": diffusion_loss, **self._time.since(begin)})

    def losses(self, model: list[Any], stage: RunningStage) -> tuple[float, dict[str, float]]:
        """AR loss, and diffusion loss by noise level, under the layout of training; changes nothing in it.

        Args:
            model: this rank's chunks, wrapped.
            stage: whose held-out data they are of, at the levels of `StageKind.validation_levels`.
        """
        levels, name = stage.plan.kind.validation_levels(self.config), stage.plan.name
        losses = {level: stage.trainer.held_out_losses(model, self._load(name, level)) for level in levels}
        forget_pending_amaxes(model)
        diffusion_loss = {f"{level:g}": diffusion for level, (_, diffusion) in losses.items() if level is not None}
        return losses[levels[0]][0], diffusion_loss

    def _load(self, stage: str, level: float | None) -> list[Samples]:
        """The micro-batches of this rank for a stage at a noise level, read once."""
        if (stage, level) not in self._samples:
            loaded = batches(
                validation_samples(
                    self.config, stage, level, parallel_state.is_pipeline_first_stage(ignore_virtual=True)
                ),
                first_step=0,
                last_step=1,
                global_size=self.config.validation.samples,
                micro_size=self.config.batch.micro_size,
                workers=0,
                rank=parallel_state.get_data_parallel_rank(),
                size=parallel_state.get_data_parallel_world_size(),
            )
            self._samples[stage, level] = next(iter(loaded))
        return self._samples[stage, level]
