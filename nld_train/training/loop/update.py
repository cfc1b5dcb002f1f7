"""The end of an optimizer step: the gradient is measured, checked, clipped and applied.

The host waits for the device once: loss terms and gradient norm are read back together, before the update, which runs
behind the host's preparation of the next step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nld_train.collectives import all_reduce
from nld_train.errors import UserError
from nld_train.profiling import profiled
from nld_train.training.loop.optimizer import optimizer_parts


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite; nothing was updated. The weights before this step are the cause."""


class NonFiniteUpdateError(NonFiniteError):
    """An update whose loss and gradient are finite makes weights that are not; the weights before it are good."""


def zero_gradients(model: list[Any], optimizer: Any) -> None:
    """Sets all gradients to zero.

    Args:
        model: this rank's chunks, wrapped.
        optimizer: Megatron's.
    """
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()


def update(optimizer: Any, clip_grad: float, terms: Tensor, names: Sequence[str]) -> tuple[list[float], float]:
    """Checks, clips and applies the gradients.

    Args:
        optimizer: Megatron's.
        clip_grad: largest norm of the gradient; 0: no clipping.
        terms: `[n]` on the device, the same on every rank.
        names: what the first of them are called; those must be finite.

    Returns:
        The terms as numbers, and the norm of the gradient before clipping.

    Raises:
        NonFiniteError: on every rank, before the update, if a named term, the norm or the size of the update is not
            finite.
    """
    # True only with a gradient scaler, as fp16 needs it.
    assert not optimizer.prepare_grads(), "gradients are not scaled"
    *numbers, square = torch.cat([terms.double(), gradient_square(optimizer, terms.device).double()]).tolist()
    gradient_norm = square**0.5
    for name, value in (*zip(names, numbers, strict=False), ("gradient norm", gradient_norm)):
        if not math.isfinite(value):
            raise NonFiniteError(f"{name} is {value}: the update was not made")
    _refuse_overflow(optimizer)
    with profiled("optimizer"):
        _clip(optimizer, gradient_norm, clip_grad)
        optimizer.step_with_ready_grads()
    return numbers, gradient_norm


def gradient_square(optimizer: Any, device: torch.device) -> Tensor:
    """The square of the norm of the whole gradient, over all shards: float32 `[1]`, without a host synchronisation.

    Megatron's `get_grad_norm` computes the same number; without Transformer Engine and Apex it reads back the norm of
    each tensor.
    """
    parts = optimizer_parts(optimizer)
    gradients = [gradient for part in parts for gradient in _counted_gradients(part)]
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=device)
    square = norm.float().square().reshape(1)
    all_reduce(square, group=parts[0].get_grad_stats_parallel_group())
    return square


def _counted_gradients(part: Any) -> list[Tensor]:
    """The gradients of an optimizer of Megatron's, each on one rank only; Megatron-Core 0.19 has renamed the method."""
    name = "get_grads_for_grad_norm"
    found: list[Tensor] = getattr(part, name if hasattr(part, name) else "get_main_grads_for_grad_norm")()
    return found


def _clip(optimizer: Any, gradient_norm: float, limit: float) -> None:
    """Scales all gradients so that their global norm is at most `limit`; with 0 nothing is scaled."""
    factor = limit / (gradient_norm + 1e-6)
    if limit <= 0 or factor >= 1:
        return
    gradients = []
    for part in optimizer_parts(optimizer):
        # Precision-aware optimizers store gradients in `decoupled_grad`: `grad` has to have the weight's type.
        decoupled = bool(getattr(part.config, "use_precision_aware_optimizer_no_fp8_or_ds_fp8", False))
        name = "decoupled_grad" if decoupled else "grad"
        gradients += [getattr(parameter, name, None) for parameter in part.get_parameters()]
    if gradients := [gradient.detach() for gradient in gradients if gradient is not None]:
        torch._foreach_mul_(gradients, factor)


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
