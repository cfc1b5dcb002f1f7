"""Patches with which Megatron-Core runs on a CPU: its unconditional calls to `torch.cuda` are redirected.

Functions are patched in place rather than through a `TorchFunctionMode`: a mode slows down every operation and does not
apply to other threads. Nothing is patched in a process that uses a CUDA device.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils._device import _device_constructors

_FACTORIES = (
    "tensor",
    "empty",
    "zeros",
    "ones",
    "full",
    "arange",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
)
_installed = False


def install() -> None:
    """Redirects `torch.cuda` to the CPU for the rest of this process. Calling it again changes nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    _patch_factories()
    _patch_tensor_methods()
    _patch_cuda_module()
    _patch_megatron_random()
    _patch_megatron_checkpointing()


def _redirect(device: Any) -> Any:
    """The CPU for any form of a CUDA device; everything else unchanged."""
    if isinstance(device, int) or (device is not None and str(device).startswith("cuda")):
        return torch.device("cpu")
    return device


def _patch_factories() -> None:
    # torch caches, on the first call, the functions that `with torch.device(...)` applies to: the unpatched ones.
    _device_constructors()
    for name in _FACTORIES:
        factory = getattr(torch, name)

        @functools.wraps(factory)
        def on_cpu(*args: Any, _factory: Any = factory, **kwargs: Any) -> Any:
            kwargs.pop("pin_memory", None)  # pinning needs an accelerator
            if "device" in kwargs:
                kwargs["device"] = _redirect(kwargs["device"])
            return _factory(*args, **kwargs)

        setattr(torch, name, on_cpu)


def _patch_tensor_methods() -> None:
    move, describe = torch.Tensor.to, torch.Tensor.type

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], str | torch.device | int):
            args = (_redirect(args[0]), *args[1:])
        if "device" in kwargs:
            kwargs["device"] = _redirect(kwargs["device"])
        return move(self, *args, **kwargs)

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # The distributed optimizer recognises its parameters by the type names of CUDA tensors.
        result = describe(self, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.") if isinstance(result, str) else result

    torch.Tensor.to = to  # type: ignore[assignment, method-assign]
    torch.Tensor.type = type_  # type: ignore[assignment, method-assign]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


class _NoStream:
    """A CUDA stream that does nothing: the CPU runs in order. A class, since libraries use it in annotations."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def record_event(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *_: Any) -> None: ...


def _patch_cuda_module() -> None:
    replacements: dict[str, Any] = {
        "current_device": lambda: torch.device("cpu"),
        "set_device": lambda *_: None,
        "synchronize": lambda *_, **__: None,
        "empty_cache": lambda: None,
        "manual_seed": torch.manual_seed,
        "Stream": _NoStream,
        "current_stream": lambda *_, **__: _NoStream(),
        "stream": lambda stream: stream if stream is not None else _NoStream(),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    torch.cuda.random.get_rng_state = replacements["get_rng_state"]
    torch.cuda.random.set_rng_state = replacements["set_rng_state"]


def _patch_megatron_random() -> None:
    import megatron.core.tensor_parallel.random as megatron_random

    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    megatron_random._lazy_call = lambda call, **__: call()
    megatron_random._lazy_init = lambda: None


def _patch_megatron_checkpointing() -> None:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    # Its default argument is the unpatched `torch.empty`, bound at import.
    ShardedTensor.init_data.__defaults__ = (torch.empty,)
