"""What follows from the settings: steps, tokens and samples of every stage, and how the world is shared out."""

from __future__ import annotations

from dataclasses import dataclass

from nld_train.config.schema import AdapterConfig, Averaging, Config


@dataclass(frozen=True)
class StagePlan:
    """One stage in whole optimizer steps.

    `first_step` counts from 0 over the whole run; `tokens` and `samples` are what is really trained on, which is at
    least what was asked for, since a step is never cut. `adapter` is set where the stage trains a drafter adapter.
    """

    name: str
    alpha: float
    averaging: Averaging
    first_step: int
    steps: int
    samples: int
    tokens: int
    adapter: AdapterConfig | None = None


def tokens_per_step(config: Config) -> int:
    """Data tokens of one optimizer step over all processes; the noisy copies of a joint step do not count."""
    return config.batch.global_size * config.batch.sequence_length


def stage_plans(config: Config) -> tuple[StagePlan, ...]:
    """The stages that run, in order. `run.max_steps` changes none of them: it only stops earlier."""
    plans = []
    first_step = 0
    for name in config.run.stages:
        stage = config.stages[name]
        steps = -(-stage.tokens // tokens_per_step(config))
        samples = steps * config.batch.global_size
        tokens = samples * config.batch.sequence_length
        plans.append(StagePlan(name, stage.alpha, stage.averaging, first_step, steps, samples, tokens, stage.adapter))
        first_step += steps
    return tuple(plans)


def total_steps(config: Config) -> int:
    """Optimizer steps of the whole run, `run.max_steps` aside."""
    return sum(plan.steps for plan in stage_plans(config))


def data_parallel_size(config: Config, world_size: int) -> int:
    """Among how many groups of processes `world_size` processes share out the samples; each group works on its own."""
    parallel = config.parallel
    return world_size // (parallel.tensor * parallel.pipeline * parallel.context)


def copies_of_weights(config: Config, world_size: int) -> int:
    """Processes that hold the same weights: those that take other samples, or other parts of the same ones."""
    return data_parallel_size(config, world_size) * config.parallel.context


def micro_batches(config: Config, world_size: int) -> int:
    """Forward passes that each process makes for one optimizer step."""
    return config.batch.global_size // (config.batch.micro_size * data_parallel_size(config, world_size))
