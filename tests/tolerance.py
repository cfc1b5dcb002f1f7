"""How far two computations of the same number may differ where they went through other kernels, shapes or orders.

A sum of n numbers in another order, or by another kernel, differs by rounding alone. Every addition rounds to eps / 2
of the partial sum; the roundings are independent of each other, so that they grow with sqrt(n) and not with n (Higham
and Mary 2019, "A new approach to probabilistic rounding error analysis"). The partial sums are about as large as the
largest number of the result. So the bound is a small multiple of eps * sqrt(additions) * largest magnitude, where
`additions` counts those on the longest way from the inputs to one number of the result. It holds on every processor: no
constant in it was found by trying.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

# Both sides round, and eps / 2 is the largest error of one rounding: two standard deviations of the difference or more.
MULTIPLE = 2.0


def largest(values: Any) -> float:
    """The largest finite magnitude among tensors, numbers, and lists of them; 0 without any."""
    if isinstance(values, Sequence):
        return max(map(largest, values), default=0.0)
    finite = torch.as_tensor(values).detach().abs().double()
    finite = finite[finite.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def rounding_bound(
    reference: Any, additions: int, multiple: float = MULTIPLE, dtype: torch.dtype = torch.float32
) -> float:
    """Largest difference that rounding explains.

    Args:
        reference: the numbers that are compared, or others that tell the scale of what was added up.
        additions: on the longest way from the inputs to one of them; see `forward_additions`.
        multiple: of eps * sqrt(additions) * the largest magnitude.
        dtype: in which was computed.
    """
    return multiple * torch.finfo(dtype).eps * math.sqrt(additions) * largest(reference)


def assert_close_to_rounding(
    actual: Any,
    expected: Any,
    additions: int,
    multiple: float = MULTIPLE,
    scale: Any = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Fails where tensors (or lists of them) differ by more than `rounding_bound` of the expected one, or of `scale`.

    The type is by default the coarser one of both tensors.
    """
    if isinstance(expected, list | tuple):
        for one, other in zip(actual, expected, strict=True):
            assert_close_to_rounding(one, other, additions, multiple, scale, dtype)
        return
    coarser = dtype or max((actual.dtype, expected.dtype), key=lambda kind: torch.finfo(kind).eps)
    bound = rounding_bound(expected if scale is None else scale, additions, multiple, coarser)
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound, check_dtype=False)


def approx_to_rounding(expected: Any, additions: int, multiple: float = MULTIPLE, scale: Any = None) -> Any:
    """The same for Python numbers that were computed in float32: a `pytest.approx`."""
    bound = rounding_bound(expected if scale is None else scale, additions, multiple)
    return pytest.approx(expected, rel=0, abs=bound)


def forward_additions(model: Any, keys: int) -> int:
    """Additions on the longest way from a token's embedding to a logit.

    Args:
        model: sizes under the names of a `config.json`, as a mapping or as attributes.
        keys: tokens that one token sees at most.
    """
    sizes = model if isinstance(model, Mapping) else vars(model)
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"] * sizes["head_dim"]
    # Norm, projections, scores, softmax, its average of values, output; norm, both products of the MLP; two residuals.
    attention = 2 * hidden + sizes["head_dim"] + 2 * keys + heads
    layer = attention + 2 * hidden + sizes["intermediate_size"] + 2
    return int(sizes["num_hidden_layers"] * layer + 2 * hidden)


def gradient_additions(model: Any, keys: int, rows: int) -> int:
    """Of a forward pass, of a backward pass with two products for each of its own, and over the rows of a batch."""
    return 3 * forward_additions(model, keys) + rows
