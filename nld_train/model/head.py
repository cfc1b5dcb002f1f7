"""The head, whose weight gradient is summed over chunks of rows in float32.

The head is applied to a chunk of rows at a time (`losses.cross_entropy`). Autograd would sum the chunks' gradients of
its weight in the weight's precision, bf16, before Megatron adds the sum to the float32 buffer `main_grad`. Here each
chunk adds its own to the buffer, as Megatron's fused layers do (`LinearWithGradAccumulationAndAsyncCommunication` in
`megatron/core/tensor_parallel/layers.py`): the mark `grad_added_to_main_grad` tells the hook of Megatron's
`DistributedDataParallel` not to add the gradient that it gets, which has arbitrary values. The hook must run once, when
all chunks are through.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from nld_train.model.weight_gradients import add_product


class Head(ColumnParallelLinear):
    """Megatron's column-parallel head, from hidden rows `[n, h]` to this rank's logits `[n, V / tensor]`."""

    def accumulates(self) -> bool:
        """Whether a forward pass now should add to `main_grad`."""
        weight = self.weight
        assert not getattr(weight, "zero_out_wgrad", False), "the head is not tied to the embedding"
        return torch.is_grad_enabled() and weight.requires_grad and hasattr(weight, "main_grad")

    def forward(self, input_: Tensor, *arguments: Any, accumulate: bool = False, **named: Any) -> tuple[Tensor, Any]:
        """Megatron's, or with `accumulate` for rows that have passed `gradients_added`."""
        if accumulate:
            return added_product(input_, self.weight), None
        result: tuple[Tensor, Any] = super().forward(input_, *arguments, **named)
        return result


def gradients_added(rows: Tensor, weight: Tensor) -> Tensor:
    """The rows `[n, h]` as they are; in the backward pass, after all products with them, `weight` gets its gradient."""
    passed: Tensor = _GradientsAdded.apply(rows, weight)
    return passed


def added_product(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows @ weight.T` for rows that have passed `gradients_added`; its backward pass adds to `weight.main_grad`."""
    logits: Tensor = _Product.apply(rows, weight)
    return logits


class _GradientsAdded(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, weight: Tensor) -> Tensor:
        context.weight = weight
        return rows.view_as(rows)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight = context.weight
        weight.grad_added_to_main_grad = True
        return gradient, torch.empty_like(weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(rows)
        context.weight = weight
        return rows @ weight.T

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,), weight = context.saved_tensors, context.weight
        add_product(weight.main_grad, gradient, rows)
        return gradient @ weight.detach(), None
