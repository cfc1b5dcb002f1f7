"""Derived from the settings: steps, tokens and samples of every stage, and the sizes of process groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.config.schema import Config, StageConfig
from nld_train.config.stage_kinds import kind_of

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind


@dataclass(frozen=True)
class StagePlan:
    """One stage in whole optimizer steps.

    Attributes:
        name: of the stage.
        stage: its settings.
        first_step: from 0, over the whole run.
        steps: optimizer steps of the stage.
        samples: number of training samples.
        tokens: number of training tokens: that of the settings, rounded up to whole steps.
    """

    name: str
    stage: StageConfig
    first_step: int
    steps: int
    samples: int
    tokens: int

    @property
    def kind(self) -> StageKind:
        """The object of the stage's kind."""
        return kind_of(self.stage)


def tokens_per_step(config: Config) -> int:
    """Data tokens of one optimizer step over all processes; the noisy copies of a joint step do not count."""
    return config.batch.global_size * config.batch.sequence_length


def stage_plans(config: Config) -> tuple[StagePlan, ...]:
    """The stages that run, in order. `run.max_steps` does not change them: the run only stops earlier."""
    plans = []
    first_step = 0
    for name in config.run.stages:
        stage = config.stages[name]
        steps = -(-stage.tokens // tokens_per_step(config))
        samples = steps * config.batch.global_size
        tokens = samples * config.batch.sequence_length
        plans.append(StagePlan(name, stage, first_step, steps, samples, tokens))
        first_step += steps
    return tuple(plans)


def total_steps(config: Config) -> int:
    """Optimizer steps of the whole run, regardless of `run.max_steps`."""
    return sum(plan.steps for plan in stage_plans(config))


def data_parallel_size(config: Config, world_size: int) -> int:
    """Data-parallel ranks of `world_size` processes: groups of processes that train on different samples."""
    parallel = config.parallel
    return world_size // (parallel.tensor * parallel.pipeline * parallel.context)


def replicas(config: Config, world_size: int) -> int:
    """Processes with the same weights: data-parallel and context-parallel ranks."""
    return data_parallel_size(config, world_size) * config.parallel.context


def micro_batches(config: Config, world_size: int) -> int:
    """Forward passes that each process makes for one optimizer step."""
    return config.batch.global_size // (config.batch.micro_size * data_parallel_size(config, world_size))
