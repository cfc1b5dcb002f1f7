"""Whether weights are finite numbers. Each tensor is read once, and no copy of it is made."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def is_finite(values: Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite."""
    return first_non_finite([("", values)]) is None


def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity, or None. Integers and empty tensors are passed over."""
    names: list[str] = []
    extremes: list[Tensor] = []
    for name, tensor in named:
        if tensor.is_floating_point() and tensor.numel() > 0:
            names.append(name)
            # A NaN is both the smallest and the largest value of its tensor.
            extremes.append(torch.stack(torch.aminmax(tensor.detach())).double())
    for device in dict.fromkeys(found.device for found in extremes):
        own = [index for index, found in enumerate(extremes) if found.device == device]
        # One transfer for all tensors of a device.
        finite = torch.stack([extremes[index] for index in own]).isfinite().all(dim=1).tolist()
        bad = next((names[index] for index, good in zip(own, finite, strict=True) if not good), None)
        if bad is not None:
            return bad
    return None
