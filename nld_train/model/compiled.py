"""Functions of ours that `torch.compile` compiles whole, with a limit of their own that is an error when it is hit.

Torch compiles a function anew for every combination of shapes, types and grad mode, and falls back to the uncompiled
function after `torch._dynamo.config.recompile_limit` of them, with a warning. For FlexAttention that would mean the
scores of all pairs in memory. Here the limit is each function's own, does not count what other code compiles, and
raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any
from weakref import WeakSet

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from nld_train.errors import UserError

# Older versions of torch, 2.11 among them, take no limit for a function.
_TAKES_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters
_made: WeakSet[CompiledFunction] = WeakSet()


class CompiledFunction:
    """A function that is compiled for each new combination of shapes, types and grad mode of its arguments.

    Args:
        function: a plain function without free variables.
        name: of the function, for the message.
        key: the key that selects it, for the message.
        variants: how many combinations are compiled at most, until `forget_compiled`.
        **options: further arguments of `torch.compile`.
    """

    def __init__(self, function: Callable[..., Any], name: str, key: str, variants: int, **options: Any) -> None:
        assert isinstance(function, FunctionType)
        self._function, self._name, self._key = function, name, key
        self._variants, self._options = variants, options
        self._compiled: Callable[..., Any] | None = None
        _made.add(self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The function's result.

        Raises:
            UserError: another combination than those that it is compiled for, beyond the limit.
        """
        if self._compiled is None:
            self._compiled = self._compile()
        try:
            with nullcontext() if _TAKES_LIMIT else _limited(self._variants):
                return self._compiled(*arguments, **named)
        except FailOnRecompileLimitHit as error:
            shapes = ", ".join(str(list(each.shape)) for each in arguments if isinstance(each, torch.Tensor))
            raise UserError(
                f"{self._key}: {self._name} has been compiled for {self._variants} combinations of shapes, types and "
                f"grad mode, its limit, and not for {shapes}; use fewer batch sizes and lengths in one run "
                "(TORCH_LOGS=recompiles lists them)"
            ) from error

    def forget(self) -> None:
        """Compiles anew from here on: the next job of a sweep has other shapes."""
        self._compiled = None

    def _compile(self) -> Callable[..., Any]:
        # Torch counts by code object, so a copy has its own count. With `fullgraph` the limit is an error.
        function = FunctionType(self._function.__code__.replace(), self._function.__globals__, self._function.__name__)
        options = {"fullgraph": True, "dynamic": False, **self._options}
        if _TAKES_LIMIT:
            options["recompile_limit"] = self._variants
        return torch.compile(function, **options)


@contextmanager
def _limited(variants: int) -> Iterator[None]:
    """A limit while a function is called, for versions that have one for all functions."""
    config = torch._dynamo.config
    others, config.recompile_limit = config.recompile_limit, variants
    try:
        yield
    finally:
        config.recompile_limit = others


def forget_compiled() -> None:
    """`CompiledFunction.forget` of all of them, at the end of a job."""
    for function in _made:
        function.forget()
