"""Making tensors on the device, and moving them and modules to it and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._device
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pretended import graphs
from pretended.ledger import BLOCKING, LEDGER, NON_BLOCKING_TO_HOST, TO_HOST, spoil
from pretended.pinned import is_pinned, note_copy_to_device, register_pinned
from pretended.tensor import CudaTensor

_FROM_VALUES = ("tensor", "as_tensor", "asarray")
_FACTORIES = [
    "empty",
    "zeros",
    "ones",
    "full",
    "arange",
    "eye",
    "linspace",
    "logspace",
    "rand",
    "randn",
    "randint",
    "randperm",
    "scalar_tensor",
    "empty_strided",
    "tril_indices",
    "triu_indices",
]
_LIKE = ["empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"]
_NEW = ["new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"]
_UNWRITTEN = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")
_plain_to = torch.Tensor.to


def install() -> None:
    """Patches in place: a mode would not reach other threads, nor what autograd calls."""
    # torch caches, on the first call, the functions that `with torch.device(...)` applies to: the unpatched ones.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _factory(getattr(torch, name)))
    for name in _FROM_VALUES:
        setattr(torch, name, _from_values(getattr(torch, name)))
    for owner, names in ((torch, _LIKE), (torch.Tensor, _NEW)):
        for name in names:
            setattr(owner, name, _like(getattr(owner, name)))
    patched: Any = torch.Tensor
    patched.to = _to
    patched.cuda = lambda self, device=None, non_blocking=False, **_: _to(self, "cuda", non_blocking=non_blocking)
    patched.cpu = lambda self, **_: _to(self, "cpu")
    patched.is_pinned = lambda self, *_: is_pinned(self)
    patched.pin_memory = lambda self, *_: self if is_pinned(self) else register_pinned(self.clone())
    patched.data = property(_data, _set_data)
    module: Any = torch.nn.Module
    module._apply, module.to = _apply, _module_to(torch.nn.Module.to)


def names_cuda(device: Any) -> bool:
    """Whether an argument `device` is the pretended one, in any of torch's forms."""
    return isinstance(device, int) or (device is not None and str(device).startswith("cuda"))


def _device_of(kwargs: dict[str, Any]) -> Any:
    """The device that a factory is asked for; by default that of `with torch.device(...)`."""
    device = kwargs.get("device")
    return torch.utils._device.CURRENT_DEVICE if device is None else device


def _factory(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Tensor:
        pin = kwargs.pop("pin_memory", False)
        if not names_cuda(_device_of(kwargs)):
            found = make(*args, **kwargs)
            return register_pinned(found) if pin else found
        needs_gradient = kwargs.pop("requires_grad", False)
        plain = make(*args, **{**kwargs, "device": "cpu"})
        if make.__name__ in _UNWRITTEN:
            spoil(plain)
        else:
            graphs.record_filled(plain)
        return CudaTensor(plain, needs_gradient)

    return made


def _from_values(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def made(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("pin_memory", None)
        if isinstance(data, CudaTensor) and make.__name__ != "tensor":
            return data if _device_of(kwargs) is None else _to(data, _device_of(kwargs), kwargs.get("dtype"))
        if not names_cuda(_device_of(kwargs)):
            return make(_read(data), *args, **kwargs)
        needs_gradient = kwargs.pop("requires_grad", False)
        plain = make(_read(data), *args, **{**kwargs, "device": "cpu"})
        LEDGER.note(BLOCKING, f"torch.{make.__name__}(values, device=cuda) {tuple(plain.shape)} {str(plain.dtype)[6:]}")
        return CudaTensor(plain.clone(), needs_gradient)

    return made


def _read(data: Any) -> Any:
    """Numbers in place of tensors of the device, each of which the host waits for."""
    if isinstance(data, CudaTensor):
        return data.tolist()
    if isinstance(data, list | tuple):
        return [_read(value) for value in data]
    return data


def _like(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def made(like: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.pop("device", None)
        pin = kwargs.pop("pin_memory", False)
        if device is not None and not names_cuda(device):
            plain = like.inner if isinstance(like, CudaTensor) else like
            found = make(plain, *args, device=device, **kwargs)
            return register_pinned(found) if pin else found
        found = make(like, *args, **kwargs)
        if device is not None and not isinstance(found, CudaTensor):
            found = CudaTensor(found.detach(), found.requires_grad)
        if isinstance(found, CudaTensor) and make.__name__ in _UNWRITTEN:
            spoil(found.inner)
        return register_pinned(found) if pin else found

    return made


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return CudaTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Tensor:  # type: ignore[override]
        LEDGER.note(TO_HOST, "gradient")
        plain: Tensor = gradient.inner
        return plain


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        plain: Tensor = tensor.inner.detach().clone()
        return plain

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        LEDGER.note(BLOCKING, "gradient")
        return CudaTensor(gradient)


def _to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`."""
    device, dtype, non_blocking, copy, rest = _arguments(args, kwargs)
    converted = dtype is not None and dtype != self.dtype
    if device is None or names_cuda(device) == isinstance(self, CudaTensor):
        if isinstance(self, CudaTensor):
            return _plain_to(self, dtype or self.dtype, copy=copy, **rest)
        return _plain_to(self, device or self.device, dtype or self.dtype, copy=copy, **rest)
    what = f"{tuple(self.shape)} {str(self.dtype)[6:]}"
    if not isinstance(self, CudaTensor):
        assert self.device.type == "cpu", f"from {self.device} to the device"
        note_copy_to_device(self, what, non_blocking, converted)
        plain = _plain_to(self, dtype) if converted and dtype is not None else self
        return _ToDevice.apply(plain) if self.requires_grad and torch.is_grad_enabled() else CudaTensor(plain.clone())
    there: Any = _plain_to(self, dtype) if converted and dtype is not None else self
    if torch.device(device).type == "meta":
        return torch.empty_like(there.inner, device="meta")
    if non_blocking:
        arriving = register_pinned(torch.empty_like(there.inner))
        LEDGER.note(NON_BLOCKING_TO_HOST, what)
        LEDGER.begin_copy(there.inner, arriving)
        return arriving
    if self.numel():
        LEDGER.note(TO_HOST, what)
    return _ToHost.apply(there) if self.requires_grad and torch.is_grad_enabled() else there.inner.detach().clone()


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
    """Device, type, non_blocking, copy, and the rest of the arguments of `Tensor.to`."""
    names = ["device", "dtype", "non_blocking", "copy"]
    given = dict(kwargs)
    if args and isinstance(args[0], Tensor):
        given["other"], args, names = args[0], args[1:], names[2:]
    elif args and isinstance(args[0], torch.dtype):
        names = names[1:]
    given |= dict(zip(names, args, strict=False))
    if "other" in given:
        other = given.pop("other")
        given["device"], given["dtype"] = other.device, other.dtype
    found = (given.pop("device", None), given.pop("dtype", None))
    return *found, bool(given.pop("non_blocking", False)), bool(given.pop("copy", False)), given


_plain_data = torch._C._TensorBase.data


def _data(self: Tensor) -> Tensor:
    found: Tensor = _plain_data.__get__(self)
    return found


def _set_data(self: Tensor, value: Tensor) -> None:
    """`Tensor.data` of a CPU tensor, which has no memory that could be the device's: that move cannot be pretended."""
    assert not isinstance(value, CudaTensor), "data of the device for a tensor of the CPU"
    _plain_data.__set__(self, value)


def _module_to(move: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(move)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], CudaTensor):  # C++ reads another device from it
            args = (args[0].device, args[0].dtype, *args[1:])
        return move(self, *args, **kwargs)

    return to


_moved = WeakIdKeyDictionary()


def _apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """`Module._apply`, for `to`, `cuda`, `cpu`, `to_empty`: a parameter that moves is a new one with its attributes."""
    for child in self.children() if recurse else ():
        _apply(child, fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = _applied(parameter, fn)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _applied(parameter: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if parameter in _moved and _moved[parameter] is not None:
        return _moved[parameter]  # of a module that shares it
    with torch.no_grad():
        value = fn(parameter)
    if isinstance(value, CudaTensor) == isinstance(parameter, CudaTensor) and value.device == parameter.device:
        parameter.data = value
        return parameter
    new = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
    new.__dict__.update({key: kept for key, kept in parameter.__dict__.items() if key != "inner"})
    _moved[parameter] = new
    return new
