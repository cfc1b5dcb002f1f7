"""The optimizer step of the objective: count rows, forward and backward, check, clip, update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from nld_train.config.schema import StageConfig
from nld_train.errors import UserError
from nld_train.losses.objective import Denominators, GlobalCounts, Terms, denominators
from nld_train.model import streams
from nld_train.model.rotary import RotaryEmbedding
from nld_train.profiling import profiled
from nld_train.training.loop.forward_backward import global_counts, global_terms, run_schedule
from nld_train.training.loop.micro_batch import Samples, StreamSettings, prepare
from nld_train.training.loop.optimizer import clip_gradients


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite; nothing was updated. The weights before this step are the cause."""


class NonFiniteUpdateError(NonFiniteError):
    """An update whose loss and gradient are finite makes weights that are not; the weights before it are good."""


@dataclass(frozen=True)
class StepResult:
    """The measurements of one optimizer step; the same on every rank.

    Attributes:
        loss: the objective.
        ar_loss: raw AR term, averaged as the stage says.
        diffusion_loss: raw diffusion term without alpha, or None in an AR stage.
        counts: rows of the global batch.
        denominators: what the two sums of cross-entropies were divided by.
        gradient_norm: before clipping.
    """

    loss: float
    ar_loss: float
    diffusion_loss: float | None
    counts: GlobalCounts
    denominators: Denominators
    gradient_norm: float


def train_step(
    model: list[Any],
    optimizer: Any,
    samples: list[Samples],
    stage: StageConfig,
    settings: StreamSettings,
    rotary: RotaryEmbedding,
    clip_grad: float,
) -> StepResult:
    """One update of the weights from one global batch.

    Args:
        model: this rank's chunks, wrapped.
        optimizer: Megatron's.
        samples: this rank's micro-batches.
        stage: its settings, for alpha.
        settings: how samples become streams.
        rotary: the rotary embedding of the model.
        clip_grad: largest norm of the gradient; 0: no clipping.

    Raises:
        NonFiniteError: on every rank, before the update, if a loss term or the gradient is not finite.
    """
    zero_gradients(model, optimizer)
    counts = global_counts(samples, settings.device)
    with profiled("micro-batches"):
        micro_batches = [prepare(batch, counts, settings, rotary) for batch in samples]
    results = run_schedule(model, micro_batches, stage.alpha)
    streams.clear()
    ar_loss, diffusion = global_terms(results, settings.device)
    terms = Terms(ar_loss, diffusion if settings.two_streams else None)
    refuse_non_finite(ar_loss=terms.ar, diffusion_loss=terms.diffusion)
    gradient_norm = update(optimizer, clip_grad)
    divisors = denominators(settings.averaging, counts)
    return StepResult(terms.loss(stage.alpha), terms.ar, terms.diffusion, counts, divisors, gradient_norm)


def zero_gradients(model: list[Any], optimizer: Any) -> None:
    """Sets all gradients to zero.

    Args:
        model: this rank's chunks, wrapped.
        optimizer: Megatron's.
    """
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()


def update(optimizer: Any, clip_grad: float) -> float:
    """Checks, clips and applies the gradients; returns the norm that they had before clipping.

    Raises:
        NonFiniteError: on every rank, before the update, if it or the size of the update is not finite.
    """
    with profiled("optimizer"):
        gradient_norm = _gradient_norm(optimizer)
        _refuse_overflow(optimizer)
        clip_gradients(optimizer, gradient_norm, clip_grad)
        optimizer.step_with_ready_grads()
    return gradient_norm


def _gradient_norm(optimizer: Any) -> float:
    """The norm of the whole gradient, over all shards, checked."""
    found_infinite = optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    refuse_non_finite(gradient_norm=math.inf if found_infinite else norm)
    return norm


def _refuse_overflow(optimizer: Any) -> None:
    """Refuses factors of AdamW beyond float32, for which torch's kernels raise errors of their own.

    All ranks have the same parameter groups, so all of them raise.
    """
    for group in optimizer.param_groups:
        correction = 1 - group["betas"][0] ** (group.get("step", 0) + 1)
        factors = (group["lr"] / correction, group["lr"] * group["weight_decay"])
        if not max(factors) <= torch.finfo(torch.float32).max:
            raise NonFiniteUpdateError(
                f"learning rate {group['lr']:g} is too large: the update would not be finite, and was not made"
            )


def refuse_non_finite(**values: float | None) -> None:
    """Raises `NonFiniteError` for the first value that is no finite number, under its name; None is skipped.

    All ranks have the same values, so all of them raise.
    """
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise NonFiniteError(f"{name.replace('_', ' ')} is {value}: the update was not made")
