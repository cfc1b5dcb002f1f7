"""The optimizer step of the objective: count rows, forward and backward, check, clip, update.

The host waits for the device once, in `update`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nld_train.config.schema import StageConfig
from nld_train.data.collate import StreamBatch
from nld_train.losses.objective import Denominators, GlobalCounts, Terms, TermWeights, denominators
from nld_train.model import streams
from nld_train.training.loop.forward_backward import global_counts, global_terms, run_schedule
from nld_train.training.loop.micro_batch import Placement
from nld_train.training.loop.update import update, zero_gradients


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
    batches: list[StreamBatch],
    stage: StageConfig,
    placement: Placement,
    clip_grad: float,
) -> StepResult:
    """One update of the weights from one global batch.

    Args:
        model: this rank's chunks, wrapped.
        optimizer: Megatron's.
        batches: this rank's micro-batches.
        stage: its settings, for averaging and weights.
        placement: of the stage.
        clip_grad: largest norm of the gradient; 0: no clipping.

    Raises:
        NonFiniteError: on every rank, before the update, if a loss term or the gradient is not finite.
    """
    zero_gradients(model, optimizer)
    counts = global_counts(batches)
    divisors = denominators(stage.averaging, counts)
    weights = TermWeights(stage.ar_weight, stage.alpha)
    results = run_schedule(model, batches, divisors, weights, placement)
    streams.clear()
    sums = global_terms(results, placement.device)
    (ar, diffusion), gradient_norm = update(optimizer, clip_grad, sums, ("ar loss", "diffusion loss"))
    terms = Terms(ar, diffusion if "blocks" in batches[0].tensors else None)
    return StepResult(terms.loss(weights), terms.ar, terms.diffusion, counts, divisors, gradient_norm)
