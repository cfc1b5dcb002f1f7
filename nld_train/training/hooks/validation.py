"""Losses on held-out data under fixed noise, so that their curves can be compared from step to step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nld_train.config.schema import Config
from nld_train.data.samples import batches, validation_samples
from nld_train.training.loop.micro_batch import Samples
from nld_train.training.metrics.time_share import TimeShare
from nld_train.training.stages.kind import StageTrainer


@dataclass(frozen=True)
class ValidationResult:
    """Losses in nats per token, and what they cost.

    Attributes:
        ar_loss: next-token loss on the clean stream.
        diffusion_loss: per noise level, mean cross-entropy of the masked tokens, not weighted by 1/p; empty where the
            stage has no noisy stream.
        seconds: time of this validation.
        share: time of all validations so far, as a share of the time since this start of the run.
    """

    ar_loss: float
    diffusion_loss: dict[str, float]
    seconds: float
    share: float


class Validation:
    """The held-out samples of this rank and their loss.

    Args:
        config: the run.
        data_rank: this rank's place among the data-parallel ranks.
        data_size: number of data-parallel ranks.
    """

    def __init__(self, config: Config, data_rank: int, data_size: int) -> None:
        self.config = config
        self.data_rank, self.data_size = data_rank, data_size
        self._samples: dict[float | None, list[Samples]] = {}
        self._time = TimeShare()

    def due(self, stage_step: int, stage_steps: int) -> bool:
        """Whether to validate after this many steps of a stage: at the interval, and at the stage's end."""
        every = self.config.validation.every
        return every > 0 and (stage_step % every == 0 or stage_step == stage_steps)

    def run(self, model: list[Any], trainer: StageTrainer, levels: tuple[float | None, ...]) -> ValidationResult:
        """Computes the losses under the layout of training; changes nothing in it.

        Args:
            model: this rank's chunks, wrapped.
            trainer: of the stage.
            levels: noise levels, see `StageKind.validation_levels`.
        """
        begin = time.perf_counter()
        losses = {level: trainer.held_out_losses(model, self._load(level)) for level in levels}
        ar_loss = losses[levels[0]][0]
        diffusion_loss = {f"{level:g}": diffusion for level, (_, diffusion) in losses.items() if level is not None}
        return ValidationResult(ar_loss, diffusion_loss, **self._time.since(begin))

    def _load(self, level: float | None) -> list[Samples]:
        """The micro-batches of this rank at a noise level, read once."""
        if level not in self._samples:
            loaded = batches(
                validation_samples(self.config, level),
                first_step=0,
                last_step=1,
                global_size=self.config.validation.samples,
                micro_size=self.config.batch.micro_size,
                workers=0,
                rank=self.data_rank,
                size=self.data_size,
            )
            self._samples[level] = next(iter(loaded))
        return self._samples[level]
