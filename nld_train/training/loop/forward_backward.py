"""One pass of Megatron's pipeline schedule over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from nld_train.losses.objective import GlobalCounts, objective_terms
from nld_train.profiling import profiled
from nld_train.training.loop.micro_batch import MicroBatch, Samples, count_rows
from nld_train.training.loop.parallel import sum_over_world

LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]
ForwardStep = Callable[[Any, torch.nn.Module], tuple[Tensor, LossFunction]]


def global_counts(samples: list[Samples], device: torch.device) -> GlobalCounts:
    """Rows of the whole step: an all-reduce over the data-parallel ranks, before any forward pass."""
    totals = torch.tensor(count_rows(samples), dtype=torch.int64, device=device)
    dist.all_reduce(totals, group=parallel_state.get_data_parallel_group())
    return GlobalCounts(*totals.tolist())


def run_schedule(
    model: list[Any], micro_batches: Sequence[MicroBatch], alpha: float, forward_only: bool = False
) -> list[dict[str, Tensor]]:
    """Runs forward (and backward) over all micro-batches under the layout's pipeline schedule.

    Args:
        model: the model's chunks on this rank.
        micro_batches: the same number on every rank.
        alpha: weight of the diffusion term.
        forward_only: without gradients.

    Returns:
        One dict per micro-batch on the last pipeline stage, an empty list elsewhere, see `_loss_function`.
    """
    return run_passes(model, micro_batches, partial(_forward_step, alpha=alpha), forward_only)


class HasTokens(Protocol):
    """The input of a forward pass."""

    @property
    def tokens(self) -> Tensor:
        """int64 `[b, S]`."""


def run_passes(
    model: list[Any], inputs: Sequence[HasTokens], forward_step: ForwardStep, forward_only: bool
) -> list[dict[str, Tensor]]:
    """Runs one forward (and backward) pass per input under the layout's pipeline schedule.

    Args:
        model: the model's chunks on this rank.
        inputs: one per micro-batch, the same number and shapes on every rank of the model.
        forward_step: takes the iterator of inputs and a chunk; returns the output and the loss function.
        forward_only: without gradients.

    Returns:
        The dicts that the loss functions returned, one per input, on the last pipeline stage; an empty list elsewhere.
    """
    iterators = [iter(inputs) for _ in model]
    first = inputs[0].tokens
    results: list[dict[str, Tensor]] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(model) > 1 else iterators[0],
        model=model if len(model) > 1 else model[0],
        num_microbatches=len(inputs),
        # Of the activations that pipeline stages exchange: 2L with a noisy stream. Megatron divides it by the
        # context-parallel size.
        seq_length=first.shape[1] * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=first.shape[0],
        forward_only=forward_only,
    )
    return results


def global_terms(results: list[dict[str, Tensor]], device: torch.device) -> tuple[float, float]:
    """Both raw terms of the step, summed over micro-batches and all-reduced: the same two numbers on every rank.

    Only the last pipeline stage has results. They are equal on its tensor-parallel ranks, of which one is counted;
    context-parallel ranks have those of their own rows.
    """
    counted = parallel_state.get_tensor_model_parallel_rank() == 0
    local = [
        sum((float(result[term]) for result in results if term in result), 0.0) if counted else 0.0
        for term in ("ar", "diffusion")
    ]
    ar, diffusion = sum_over_world(local, device)
    return ar, diffusion


def _forward_step(
    micro_batches: Iterator[MicroBatch], model: torch.nn.Module, alpha: float
) -> tuple[Tensor, LossFunction]:
    """What Megatron's schedules call per micro-batch: the forward pass, and the loss function of its output."""
    batch = next(micro_batches)
    output = model(batch.tokens, batch.handle, batch.rows.index, batch.rows.targets)
    return output, partial(_loss_function, batch, alpha)


def _loss_function(batch: MicroBatch, alpha: float, nll: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """This micro-batch's part of the global loss.

    The schedule and the gradient reduction divide by nothing (see `model.build.transformer_config`), so the number of
    tokens that Megatron expects as the second value is not used. The third, which the schedule returns, is cloned,
    since schedules change the loss in place.
    """
    ar_nll, diffusion_nll = nll[: batch.rows.ar_count], nll[batch.rows.ar_count :]
    with profiled("AR and diffusion loss"):
        if batch.diffusion_weights is None:
            terms = objective_terms(ar_nll, batch.ar_weights)
        else:
            terms = objective_terms(ar_nll, batch.ar_weights, diffusion_nll, batch.diffusion_weights)
    kept = {"ar": terms.ar.detach().clone()}
    if terms.diffusion is not None:
        kept["diffusion"] = terms.diffusion.detach().clone()
    return terms.loss(alpha), torch.ones((), dtype=torch.int, device=nll.device), kept
