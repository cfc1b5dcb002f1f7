"""A tensor that says `cuda:0` and holds CPU values, and what operations make of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pretended import collectives, graphs
from pretended.ledger import FROM_INDICES, LEDGER, NON_BLOCKING_TO_HOST, SYNC, TO_HOST
from pretended.memory import MEMORY
from pretended.pinned import note_copy_to_device

CUDA = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
aten = torch.ops.aten
# The size or the value of their result is known only to the device.
_SYNCHRONISING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.multinomial.default,  # it checks its probabilities
    aten.repeat_interleave.Tensor,
}
_READING_INDICES = {aten.index.Tensor, aten._unsafe_index.Tensor}
_WRITING_INDICES = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# A CPU tensor without dimensions passes as a number, but not here.
_ALL_ON_ONE_DEVICE = {aten.stack.default, aten.cat.default, aten._foreach_norm.Scalar}
_TYPE_NAMES = {
    torch.float32: "FloatTensor",
    torch.float64: "DoubleTensor",
    torch.bfloat16: "BFloat16Tensor",
    torch.float16: "HalfTensor",
    torch.int64: "LongTensor",
    torch.int32: "IntTensor",
    torch.uint8: "ByteTensor",
    torch.bool: "BoolTensor",
}


class CudaTensor(torch.Tensor):
    """A wrapper around a CPU tensor, `inner`, which has its values and its strides."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> CudaTensor:
        assert not isinstance(inner, CudaTensor)
        # To torch's C++ it is a CPU tensor: a build without CUDA can neither index nor differentiate another one.
        made: CudaTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=requires_grad,
        )
        made.inner = inner
        MEMORY.hold(inner)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @property
    def data(self) -> CudaTensor:
        with torch.no_grad():
            return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, CudaTensor), "CPU data for a tensor of the device"
        if (value.shape, value.dtype, value.stride()) != (self.shape, self.dtype, self.stride()):
            torch._C._TensorBase.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def get_device(self) -> int:
        return int(CUDA.index)

    def type(self, dtype: Any = None, *arguments: Any, **named: Any) -> Any:
        if dtype is None:
            return f"torch.cuda.{_TYPE_NAMES[self.dtype]}"
        if isinstance(dtype, str):
            assert dtype.startswith("torch.cuda."), f"a tensor of the device becomes a {dtype}"
            dtype = next(key for key, name in _TYPE_NAMES.items() if dtype.endswith(f".{name}"))
        return self.to(dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.dim() == 0 else repr(self)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to the host first"
        )

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def is_pinned(self, *_: Any) -> bool:
        return False

    def pin_memory(self, *_: Any) -> Any:
        raise RuntimeError("cannot pin 'torch.cuda' tensors: only dense CPU tensors can be pinned")

    def tolist(self) -> Any:
        LEDGER.note(SYNC, "tolist")
        return self.inner.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        LEDGER.note(TO_HOST, "pickled")
        return self.inner.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaTensor:
        copied = CudaTensor(self.inner.clone(), self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


def inner_of(value: Any) -> Any:
    """The CPU tensor of a tensor of the device; everything else unchanged."""
    return value.inner if isinstance(value, CudaTensor) else value


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = str(func)
    LEDGER.operation(name)
    if func is aten.copy_.default:
        return _copy(args[0], args[1], bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking")))
    _check(func, name, args, kwargs)
    if kwargs.get("device") is not None:
        # C++ asks for the device that it takes ours for.
        kwargs = {**kwargs, "device": torch.device("cpu")}
    kwargs.pop("pin_memory", None)
    outer = {id(leaf.inner): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, CudaTensor)}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, CudaTensor):
            return value
        return outer[id(value)] if id(value) in outer else CudaTensor(value)

    inner_args, inner_kwargs = tree_map(inner_of, args), tree_map(inner_of, kwargs)
    result = func(*inner_args, **inner_kwargs)
    graphs.record(func, inner_args, inner_kwargs, result)
    return tree_map(wrap, result)


def _check(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Notes what synchronises, refuses what mixes devices."""
    if func in _SYNCHRONISING:
        LEDGER.note(SYNC, name)
    elif name.startswith("c10d"):
        collectives.check(name, args)
    elif func in _READING_INDICES or func in _WRITING_INDICES:
        _check_indices(func, name, args)
    else:
        refuse_mixed(name, (args, kwargs), numbers=func not in _ALL_ON_ONE_DEVICE)


def refuse_mixed(name: str, values: Any, numbers: bool = True) -> None:
    """Raises where CPU tensors meet tensors of the device; with `numbers`, not for those without dimensions."""
    leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    strangers = [leaf for leaf in leaves if not isinstance(leaf, CudaTensor) and (leaf.dim() or not numbers)]
    if strangers:
        shapes = [tuple(leaf.shape) for leaf in strangers]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu: "
            f"{name} with CPU tensors of shapes {shapes}"
        )


def _check_indices(func: Any, name: str, args: tuple[Any, ...]) -> None:
    target = args[0]
    indices = [index for index in args[1] if isinstance(index, Tensor)]
    value = args[2] if func in _WRITING_INDICES else None
    if isinstance(value, Tensor) and not isinstance(value, CudaTensor) and value.dim():
        refuse_mixed(name, (target, value))
    if not isinstance(target, CudaTensor):
        refuse_mixed(name, (target, indices))
        return
    for index in indices:
        masks = index.dtype in (torch.bool, torch.uint8)
        # As ATen's `canDispatchToMaskedFill`: a number that is written through one mask is a `masked_fill`.
        fills = isinstance(value, Tensor) and not isinstance(value, CudaTensor) and len(indices) == 1
        if not isinstance(index, CudaTensor):
            if index.numel() and not _in_vmap.active:
                LEDGER.note(FROM_INDICES, f"{name} with CPU indices {tuple(index.shape)}")
        elif masks and not fills:
            LEDGER.note(SYNC, f"{name} with a mask on the device")


class _InVmap:
    """Whether `torch.vmap` is at work: its rules make indices on the device that C++ takes a tensor to be on."""

    active = False


_in_vmap = _InVmap()


def note_vmap(vmapped: Callable[..., Any]) -> Callable[..., Any]:
    """Around what runs a function under `torch.vmap`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        before, _in_vmap.active = _in_vmap.active, True
        try:
            return vmapped(*args, **kwargs)
        finally:
            _in_vmap.active = before

    return run


def _copy(destination: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
    """`copy_`, the one operation that may have its tensors on two devices."""
    to, values = inner_of(destination), inner_of(source)
    shape = f"copy_ {tuple(source.shape)} {str(source.dtype)[6:]}"
    if source.numel() == 0:
        return destination
    if not isinstance(source, CudaTensor):
        note_copy_to_device(source, shape, non_blocking, converted=source.dtype != destination.dtype)
    elif not isinstance(destination, CudaTensor):
        if non_blocking and destination.is_pinned() and source.dtype == destination.dtype:
            LEDGER.note(NON_BLOCKING_TO_HOST, shape)
            LEDGER.begin_copy(values, to)
            return destination
        LEDGER.note(TO_HOST, shape)
    to.copy_(values)
    if isinstance(destination, CudaTensor):
        graphs.record(aten.copy_.default, (to, values), {}, to)
    return destination
