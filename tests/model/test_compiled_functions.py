"""Compiled functions of ours: a limit of their own, an error when it is hit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from nld_train.errors import UserError
from nld_train.model.compiled import CompiledFunction, forget_compiled


def doubled(values: Tensor) -> Tensor:
    return values * 2


def broken(values: Tensor) -> Tensor:
    """Cannot be compiled whole."""
    torch._dynamo.graph_break()
    return values


def test_the_limit_is_an_error_and_each_functions_own() -> None:
    counters = CompileCounter(), CompileCounter()
    one, other = (CompiledFunction(doubled, "Twice", "some.key", 2, backend=counter) for counter in counters)
    for length in (3, 4):
        assert one(torch.ones(length)).tolist() == [2.0] * length
    message = r"^some\.key: Twice has been compiled for 2 combinations .* and not for \[5\]; use fewer batch sizes"
    with pytest.raises(UserError, match=message):
        one(torch.ones(5))
    assert one(torch.ones(4)).tolist() == [2.0] * 4, "what is compiled is still there"
    assert counters[0].frame_count == 2
    assert other(torch.ones(5)).tolist() == [2.0] * 5
    assert counters[1].frame_count == 1


def test_a_job_of_a_sweep_does_not_count_the_previous_ones() -> None:
    counter = CompileCounter()
    function = CompiledFunction(doubled, "Twice", "some.key", 1, backend=counter)
    for length in (3, 4, 5):
        function(torch.ones(length))
        function(torch.ones(length))
        forget_compiled()
    assert counter.frame_count == 3


def test_a_function_that_is_not_compiled_whole_is_an_error() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):
        CompiledFunction(broken, "Broken", "some.key", 1, backend="eager")(torch.ones(1))
