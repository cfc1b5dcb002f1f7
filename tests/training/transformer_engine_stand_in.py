"""A package in place of Transformer Engine, for Megatron's wrappers of it, where there is no GPU.

Its modules compute with torch, on one tensor-parallel rank. Names of weights, the entry `_extra_state`, what it holds,
and the refusal to unpickle it are those of Transformer Engine 2.20. Delayed scaling is a rounding by scales that follow
from the largest values of earlier forward passes: without them a model computes something else.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VERSION = "2.20.2"
_LEVELS = 127.0


class DelayedScaling:
    """The recipe; Megatron gives more arguments."""

    def __init__(self, amax_history_len: int = 1024, **_: Any) -> None:
        self.amax_history_len = amax_history_len


class Format(Enum):
    """Of the numbers; nothing here depends on it."""

    E4M3 = "e4m3"
    HYBRID = "hybrid"


class Scaling:
    """The scales of a module's tensors, and the largest values that they follow from.

    As in Transformer Engine, a forward pass writes its largest values to the first row of the history, and the end of
    the next `fp8_autocast` with gradients takes that row into the history and the scales.
    """

    def __init__(self, length: int, tensors: int) -> None:
        self.scale = torch.ones(tensors)
        self.amax_history = torch.zeros(length, tensors)

    def update(self) -> None:
        """The next scales."""
        largest = self.amax_history.amax(0)
        self.scale.copy_(torch.where(largest > 0, _LEVELS / largest, self.scale))
        self.amax_history.copy_(self.amax_history.roll(-1, 0))
        self.amax_history[0] = 0


_recipes: list[Any] = []
_used: dict[int, Scaling] = {}  # by identity


@contextmanager
def fp8_autocast(enabled: bool = True, fp8_recipe: Any = None, **_: Any) -> Iterator[None]:
    """FP8 products inside."""
    _recipes.append(fp8_recipe if enabled else None)
    try:
        yield
    finally:
        _recipes.pop()
    if enabled and not _recipes and torch.is_grad_enabled():
        for scaling in _used.values():
            scaling.update()


class _Module(torch.nn.Module):
    """What all modules share: the scaling state of their inputs and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {}

    def get_extra_state(self) -> Tensor:
        scaling = self.fp8_meta.get("scaling_fwd")
        tensors = {} if scaling is None else {"scale_fwd": scaling.scale, "amax_history_fwd": scaling.amax_history}
        state = pickle.dumps({"recipe": "DelayedScaling", **tensors}) if tensors else b""
        return torch.frombuffer(bytearray(state), dtype=torch.uint8) if state else torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor | None) -> None:
        if state is None or state.numel() == 0:
            return
        if os.environ.get("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE") != "1":
            raise RuntimeError("Refusing to load pickled Transformer Engine extra state")
        found = pickle.loads(state.numpy().tobytes())
        self.fp8_meta["scaling_fwd"] = scaling = Scaling(*found["amax_history_fwd"].shape)
        scaling.scale.copy_(found["scale_fwd"])
        scaling.amax_history.copy_(found["amax_history_fwd"])

    def rounded(self, *tensors: Tensor) -> list[Tensor]:
        """As FP8 with delayed scaling rounds them; unchanged in other recipes and without any."""
        recipe = _recipes[-1] if _recipes else None
        if not isinstance(recipe, DelayedScaling):
            return list(tensors)
        scaling = self.fp8_meta.setdefault("scaling_fwd", Scaling(recipe.amax_history_len, len(tensors)))
        _used[id(scaling)] = scaling
        result = [
            tensor + ((tensor * scale).round() / scale - tensor).detach()
            for tensor, scale in zip(tensors, scaling.scale.tolist(), strict=True)
        ]
        largest = torch.stack([tensor.detach().abs().amax() for tensor in tensors])
        scaling.amax_history[0] = torch.maximum(scaling.amax_history[0], largest)
        return result


class RMSNorm(_Module):
    """Norm."""

    def __init__(self, hidden_size: int, eps: float, params_dtype: torch.dtype, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=params_dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.rms_norm(inputs, self.weight.shape, self.weight, self.eps)


class Linear(_Module):
    """Product."""

    def __init__(self, in_features: int, out_features: int, tp_size: int, params_dtype: torch.dtype, **_: Any) -> None:
        super().__init__()
        assert tp_size == 1, "one tensor-parallel rank"
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype))

    def forward(self, inputs: Tensor, **_: Any) -> Tensor:
        return F.linear(*self.rounded(inputs, self.weight))


class LayerNormLinear(Linear):
    """Norm and product."""

    def __init__(self, in_features: int, eps: float, params_dtype: torch.dtype, **more: Any) -> None:
        super().__init__(in_features, params_dtype=params_dtype, **more)
        self.eps = eps
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(in_features, dtype=params_dtype))

    def forward(self, inputs: Tensor, **_: Any) -> Tensor:
        return super().forward(F.rms_norm(inputs, self.layer_norm_weight.shape, self.layer_norm_weight, self.eps))


class _Package(ModuleType):
    """A module that has a class by every name, so that Megatron can subclass what is not used here."""

    def __init__(self, name: str, **content: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__path__ = []
        self.__dict__.update(content)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.__dict__[name] = type(name, (), {})
        return self.__dict__[name]


def install() -> None:
    """Puts the package in place, for a process that has not imported Megatron."""
    assert "megatron" not in sys.modules
    layers = {"RMSNorm": RMSNorm, "Linear": Linear, "LayerNormLinear": LayerNormLinear, "fp8_autocast": fp8_autocast}
    contents: dict[str, dict[str, Any]] = {
        "transformer_engine": {"__version__": VERSION},
        "transformer_engine.common": {},
        "transformer_engine.common.recipe": {"DelayedScaling": DelayedScaling, "Format": Format},
        "transformer_engine.pytorch": layers,
        "transformer_engine.pytorch.distributed": {},
        "transformer_engine.pytorch.fp8": {},
        "transformer_engine.pytorch.ops": {},
        "transformer_engine.pytorch.router": {},
        "transformer_engine.pytorch.tensor": {},
        "transformer_engine.pytorch.tensor.utils": {},
    }
    for name, content in contents.items():
        sys.modules[name] = _Package(name, **content)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
