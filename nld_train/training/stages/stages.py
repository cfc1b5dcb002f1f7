"""What the steps of a stage do: train the model on the joint objective, or a drafter adapter beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nld_train.config.plan import StagePlan
from nld_train.config.schema import AdapterConfig, Config, StageConfig
from nld_train.masking.schedule import noise_schedule
from nld_train.model.adapter_files import AdapterShape
from nld_train.model.drafter_adapter import attach_adapter, initialize_adapter
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.hooks.validation import Validation
from nld_train.training.loop.micro_batch import Samples, StreamSettings
from nld_train.training.loop.optimizer import release_wrappers, wrap_model
from nld_train.training.loop.step import train_step
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.records import drafter_measures, joint_measures
from nld_train.training.stages.drafter_batch import DrafterSettings
from nld_train.training.stages.drafter_step import drafter_step


class Task(Protocol):
    """The work of one stage."""

    def equip(self, model: list[Any]) -> list[Any]:
        """The model as this stage trains it, from this rank's wrapped chunks; called before there is an optimizer."""

    def step(self, model: list[Any], optimizer: Any, samples: list[Samples]) -> Record:
        """One optimizer step; returns its part of the record."""

    def validate(self, validation: Validation, model: list[Any]) -> Record:
        """What validation adds to the record."""


def make_task(
    config: Config, plan: StagePlan, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
) -> Task:
    """The task of a stage.

    Args:
        config: the run.
        plan: of the stage.
        rotary: gives the angles.
        dtype: of activations.
        device: of this process.
    """
    if plan.adapter is not None:
        return DrafterTask(config, plan.name, plan.adapter, rotary, _drafter_settings(config, plan, dtype, device))
    settings = StreamSettings(
        two_streams=plan.alpha > 0,
        block_size=config.diffusion.block_size,
        mask_token_id=config.model.mask_token_id,
        averaging=plan.averaging,
        schedule=noise_schedule(config.diffusion),
        dtype=dtype,
        device=device,
    )
    return JointTask(config.stages[plan.name], settings, rotary, config.optimizer.clip_grad)


@dataclass(frozen=True)
class JointTask:
    """Trains all weights on `L_AR + alpha * L_diff`."""

    stage: StageConfig
    settings: StreamSettings
    rotary: RotaryEmbedding
    clip_grad: float

    def equip(self, model: list[Any]) -> list[Any]:
        """See `Task.equip`: nothing is needed."""
        return model

    def step(self, model: list[Any], optimizer: Any, samples: list[Samples]) -> Record:
        """See `Task.step`."""
        result = train_step(model, optimizer, samples, self.stage, self.settings, self.rotary, self.clip_grad)
        return joint_measures(result, self.stage.alpha)

    def validate(self, validation: Validation, model: list[Any]) -> Record:
        """See `Task.validate`: held-out losses."""
        return {"validation": vars(validation.run(model, self.settings, self.rotary))}


@dataclass(frozen=True)
class DrafterTask:
    """Trains a drafter adapter and nothing else."""

    config: Config
    stage: str
    adapter: AdapterConfig
    rotary: RotaryEmbedding
    settings: DrafterSettings

    def equip(self, model: list[Any]) -> list[Any]:
        """See `Task.equip`: frozen weights with a new adapter, wrapped anew, so that only the adapter has gradients."""
        chunks = release_wrappers(model)
        attach_adapter(chunks, AdapterShape(self.adapter.rank, self.adapter.alpha))
        initialize_adapter(chunks, self.config.run.seed)
        return wrap_model(self.config, chunks[0].config, chunks)

    def step(self, model: list[Any], optimizer: Any, samples: list[Samples]) -> Record:
        """See `Task.step`."""
        clip_grad = self.config.optimizer.clip_grad
        return drafter_measures(drafter_step(model, optimizer, samples, self.settings, self.rotary, clip_grad))

    def validate(self, validation: Validation, model: list[Any]) -> Record:
        """See `Task.validate`: nothing, since the weights that held-out losses measure do not change."""
        del validation, model
        return {}


def _drafter_settings(config: Config, plan: StagePlan, dtype: torch.dtype, device: torch.device) -> DrafterSettings:
    assert plan.adapter is not None
    return DrafterSettings(
        adapter=plan.adapter,
        stage=plan.name,
        seed=config.run.seed,
        vocab_size=config.model.vocab_size,
        mask_token_id=config.model.mask_token_id,
        chunk_rows=config.execution.head_chunk_rows,
        dtype=dtype,
        device=device,
    )
