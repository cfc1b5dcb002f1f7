"""Whether weights are finite, for every type of weight, and wherever the value is."""

from __future__ import annotations

import math

import pytest
import torch

from nld_train.model.finite import first_non_finite, is_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_is_found_at_any_place(dtype: torch.dtype, value: float) -> None:
    for count in (1, 7, 33, 1000):
        for index in {0, count // 2, count - 1}:
            values = torch.full((count,), torch.finfo(dtype).max, dtype=dtype)
            assert is_finite(values)
            values[index] = value
            assert not is_finite(values)


def test_the_first_is_named_and_what_holds_no_number_is_passed_over() -> None:
    bad = torch.tensor([1.0, math.nan])
    tensors = {"empty": torch.empty(0, 3), "ids": torch.tensor([2**40]), "good": torch.ones(2, 2)[:, 1]}
    assert first_non_finite(tensors.items()) is None
    assert first_non_finite([]) is None
    assert first_non_finite([*tensors.items(), ("second", bad), ("third", bad)]) == "second"
