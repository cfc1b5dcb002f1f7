"""Weight gradients that the product itself adds to Megatron's float32 gradient buffers (`weight.main_grad`).

Otherwise the product writes a gradient in the weights' precision, which is then read, converted and added. Transformer
Engine's layers do it on their own; Megatron's need a function that Apex has. It is a product of torch here, so that
Apex is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nld_train.config.schema import Config

# The switch of Transformer Engine's linear layers, and of Megatron's.
_TRANSFORMER_ENGINE, _MEGATRON = "fuse_wgrad_accumulation", "gradient_accumulation_fusion"


def add_product(total: Tensor, gradient: Tensor, rows: Tensor) -> None:
    """Adds `gradient.T @ rows` to `total`, in its precision.

    Args:
        total: `[m, n]`, float32 or the type of the others.
        gradient: `[r, m]`.
        rows: `[r, n]`.
    """
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, rows)
    else:
        _mixed_product(total.device, gradient.dtype)(total, gradient.T, rows)


MixedProduct = Callable[[Tensor, Tensor, Tensor], Any]


@cache
def _mixed_product(device: torch.device, narrow: torch.dtype) -> MixedProduct:
    """The first way of adding a product of `narrow` matrices to a float32 one that this device and torch have."""
    total = torch.zeros(8, 8, device=device)
    left = right = torch.zeros(8, 8, device=device, dtype=narrow)
    for product in (_in_one_kernel, _with_a_sum):
        try:
            product(total, left, right)
        except RuntimeError:
            continue
        return product
    return _converted


def _in_one_kernel(total: Tensor, left: Tensor, right: Tensor) -> None:
    """CUDA; torch from some version on takes a `total` that is wider than the matrices."""
    torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _with_a_sum(total: Tensor, left: Tensor, right: Tensor) -> None:
    """CUDA; the product is float32 and then added."""
    total += torch.mm(left, right, out_dtype=total.dtype)


def _converted(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.addmm_(left.to(total.dtype), right.to(total.dtype))


class _Kernels:
    """What Megatron takes from Apex' extension `fused_weight_gradient_mlp_cuda`."""

    @staticmethod
    def wgrad_gemm_accum_fp32(rows: Tensor, gradient: Tensor, total: Tensor) -> None:
        add_product(total, gradient, rows)

    wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32


def adds_in_products(config: Config, device: torch.device) -> bool:
    """Whether a run's layers do it: on CUDA, if torch compiles no layers, since compiled code has no access to buffers.

    The head does it everywhere, see `model.head`.
    """
    return config.execution.compile == "none" and device.type == "cuda"


def fuse(chunks: Iterable[torch.nn.Module], on: bool) -> int:
    """Switches it on in every linear layer of the model that can, or off; returns how many there are.

    On only while the weights have gradient buffers. Layers with frozen weights compute no gradients either way.
    """
    from megatron.core.tensor_parallel import layers

    if on and not layers._grad_accum_fusion_available:
        layers.fused_weight_gradient_mlp_cuda = _Kernels
    count = 0
    for chunk in chunks:
        for module in chunk.modules():
            for switch in (_TRANSFORMER_ENGINE, _MEGATRON):
                if hasattr(module, switch):
                    setattr(module, switch, on)
                    count += 1
    return count
