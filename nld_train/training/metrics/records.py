"""The objects of `metrics.jsonl`; their keys are explained in docs/training.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch.distributed as dist

from nld_train.config.counts import step_flops
from nld_train.config.plan import StagePlan, tokens_per_step, total_steps
from nld_train.config.schema import Config
from nld_train.training.loop.step import StepResult
from nld_train.training.metrics.jsonl import Record
from nld_train.training.stages.drafter_step import DrafterResult


def step_record(
    config: Config,
    plan: StagePlan,
    stage_step: int,
    measures: Record,
    learning_rate: float,
    seconds: Sequence[float],
    peak: float | None,
) -> Record:
    """The record of one optimizer step.

    Args:
        config: the run.
        plan: of the stage.
        stage_step: of the stage, from 1.
        measures: what the stage's task measured.
        learning_rate: of this step.
        seconds: of the last steps, their waits for data included, this one at the end.
        peak: operations per second that a device is capable of, or None.
    """
    step, tokens = plan.first_step + stage_step, tokens_per_step(config)
    flops = step_flops(config, plan.alpha, plan.adapter) / (seconds[-1] * dist.get_world_size())
    return {
        "stage": plan.name,
        "step": step,
        "stage_step": stage_step,
        "tokens": step * tokens,
        "step_tokens": tokens,
        **measures,
        "learning_rate": learning_rate,
        "seconds": seconds[-1],
        "tokens_per_second": tokens / seconds[-1],
        "mfu": None if peak is None else flops / peak,
        "seconds_left": (total_steps(config) - step) * median(seconds),
    }


def joint_measures(result: StepResult, alpha: float) -> Record:
    """What a step of the joint objective measured."""
    return {
        "loss": result.loss,
        "ar_loss": result.ar_loss,
        "diffusion_loss": result.diffusion_loss,
        "alpha": alpha,
        "ar_tokens": result.counts.ar_tokens,
        "maskable_tokens": result.counts.maskable_tokens,
        "masked_tokens": result.counts.masked_tokens,
        "ar_denominator": result.denominators.ar,
        "diffusion_denominator": result.denominators.diffusion,
        "grad_norm": result.gradient_norm,
    }


def drafter_measures(result: DrafterResult) -> Record:
    """What a step of a drafter adapter measured."""
    return {
        "loss": result.loss,
        "ar_loss": None,
        "diffusion_loss": None,
        "drafter": {
            "kl": result.kl,
            "tv": result.tv,
            "cross_entropy": result.cross_entropy,
            "accepted_length": result.accepted_length,
            "greedy_accepted_length": result.greedy_accepted_length,
            "blocks": result.blocks,
        },
        "grad_norm": result.gradient_norm,
    }
