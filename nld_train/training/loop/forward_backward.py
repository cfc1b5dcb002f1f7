"""One pass of Megatron's pipeline schedule over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from nld_train.data.collate import StreamBatch
from nld_train.losses.objective import Denominators, GlobalCounts, TermWeights, objective_terms
from nld_train.profiling import profiled
from nld_train.training.loop.ahead import Cursor, PreparedAhead
from nld_train.training.loop.micro_batch import MicroBatch, Placement, prepare
from nld_train.training.loop.parallel import sum_over_data_ranks, sum_over_world

LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]
ForwardStep = Callable[[Any, torch.nn.Module], tuple[Tensor, LossFunction]]


def global_counts(batches: Sequence[StreamBatch]) -> GlobalCounts:
    """Rows of the whole step, over all data-parallel ranks; counted before any forward pass, by the hosts alone."""
    return GlobalCounts(*sum_over_data_ranks([sum(each) for each in zip(*(b.counts for b in batches), strict=True)]))


def run_schedule(
    model: list[Any],
    batches: Sequence[StreamBatch],
    divisors: Denominators,
    weights: TermWeights,
    placement: Placement,
    forward_only: bool = False,
) -> list[dict[str, Tensor]]:
    """Runs forward (and backward) over all micro-batches under the layout's pipeline schedule.

    Args:
        model: the model's chunks on this rank.
        batches: the same number on every rank.
        divisors: of the whole optimizer step.
        weights: of both terms.
        placement: of the stage.
        forward_only: without gradients.

    Returns:
        On the last pipeline stage one dict per micro-batch with `terms`, float32 `[2]`: its parts of the AR and of the
        diffusion term. An empty list elsewhere.
    """
    makers = [partial(prepare, batch, divisors, placement) for batch in batches]
    rows, length = batches[0].tensors["tokens"].shape
    inputs = PreparedAhead(makers, (rows, length), placement.device)
    return run_passes(model, inputs, partial(_forward_step, weights=weights), forward_only)


def run_passes(
    model: list[Any], inputs: PreparedAhead[Any], forward_step: ForwardStep, forward_only: bool
) -> list[dict[str, Tensor]]:
    """Runs one forward (and backward) pass per input under the layout's pipeline schedule.

    Args:
        model: the model's chunks on this rank.
        inputs: one per micro-batch, the same number and shapes on every rank of the model.
        forward_step: takes an input and a chunk; returns the output and the loss function.
        forward_only: without gradients.

    Returns:
        The dicts that the loss functions returned, one per input, on the last pipeline stage; an empty list elsewhere.
    """
    # In a pipeline, the backward pass of an input comes after the forward passes of later ones.
    releases = len(model) == 1 and (forward_only or parallel_state.get_pipeline_model_parallel_world_size() == 1)
    cursors = [Cursor(inputs, releases) for _ in model]

    def step(cursor: Cursor[Any], chunk: torch.nn.Module) -> tuple[Tensor, LossFunction]:
        output, loss_function = forward_step(cursor.take(), chunk)
        cursor.prepare_next()
        return output, loss_function

    rows, length = inputs.shape
    results: list[dict[str, Tensor]] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=cursors if len(model) > 1 else cursors[0],
        model=model if len(model) > 1 else model[0],
        num_microbatches=len(inputs),
        # Of the activations that pipeline stages exchange: 2L with a noisy stream. Megatron divides it by the
        # context-parallel size.
        seq_length=length * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=rows,
        forward_only=forward_only,
    )
    return results


def global_terms(results: list[dict[str, Tensor]], device: torch.device) -> Tensor:
    """The raw terms of the step, AR and diffusion, summed over micro-batches and all-reduced: float64 `[2]`.

    Only the last pipeline stage has results. They are equal on its tensor-parallel ranks, of which one is counted;
    context-parallel ranks have those of their own rows.
    """
    own = [result["terms"] for result in results if parallel_state.get_tensor_model_parallel_rank() == 0]
    # In float64, in which sums of a few float32 numbers are exact in any order.
    return sum_over_world(torch.stack(own).double().sum(0) if own else torch.zeros(2, device=device))


def _forward_step(batch: MicroBatch, model: torch.nn.Module, weights: TermWeights) -> tuple[Tensor, LossFunction]:
    """The forward pass of a micro-batch, and the loss function of its output.

    An AR loss of weight 0 is measured: the head has no backward pass of its rows.
    """
    measured = batch.rows.ar_count if weights.ar == 0 else 0
    seen = {"pictures": batch.pictures, "image_index": batch.image_index}
    output = model(batch.tokens, batch.handle, batch.rows.index, batch.rows.targets, measured=measured, **seen)
    return output, partial(_loss_function, batch, weights)


def _loss_function(batch: MicroBatch, weights: TermWeights, nll: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """This micro-batch's part of the global loss.

    The schedule and the gradient reduction divide by nothing (see `model.build.transformer_config`), so the number of
    tokens that Megatron expects as the second value is not used. The third, which the schedule returns, is a copy,
    since schedules change the loss in place.
    """
    ar_nll, diffusion_nll = nll[: batch.rows.ar_count], nll[batch.rows.ar_count :]
    with profiled("AR and diffusion loss"):
        if batch.diffusion_weights is None:
            terms = objective_terms(ar_nll, batch.ar_weights)
        else:
            terms = objective_terms(ar_nll, batch.ar_weights, diffusion_nll, batch.diffusion_weights)
    diffusion = torch.zeros_like(terms.ar) if terms.diffusion is None else terms.diffusion
    kept = torch.stack([terms.ar.detach(), diffusion.detach()])
    return terms.loss(weights), torch.ones((), dtype=torch.int, device=nll.device), {"terms": kept}
