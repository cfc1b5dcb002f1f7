"""CUDA graphs: the operations between begin and end of a capture, and doing them again on the same memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pretended.ledger import LEDGER, spoil

_recording: list[CUDAGraph] = []


def record(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Called for each operation on the device, with the CPU tensors that it had and made."""
    if _recording:
        _recording[-1].operations.append((func, args, kwargs, result))


def record_filled(tensor: Tensor) -> None:
    """Called for a tensor that a factory has made and filled, which a replay fills again."""
    if _recording:
        record(torch.ops.aten.copy_.default, (tensor, tensor.clone()), {}, tensor)


class CUDAGraph:
    """The part of `torch.cuda.CUDAGraph` that is used. A capture leaves no results, as on a GPU; a replay does."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.replays = 0

    def capture_begin(self, *_: Any, **__: Any) -> None:
        assert not _recording, "a graph is being captured"
        LEDGER.complete()
        LEDGER.capturing = True
        _recording.append(self)

    def capture_end(self) -> None:
        _recording.remove(self)
        LEDGER.capturing = False
        for tensor in _made(self.operations):
            spoil(tensor)

    def replay(self) -> None:
        assert not _recording, "a graph is replayed while one is captured"
        self.replays += 1
        LEDGER.operation("cudaGraphLaunch")
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old is not new and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)

    def pool(self) -> tuple[int, int]:
        return (0, 0)

    def reset(self) -> None:
        self.operations.clear()


class graph(AbstractContextManager[None]):
    """`torch.cuda.graph`."""

    def __init__(self, cuda_graph: CUDAGraph, *_: Any, stream: Any = None, **__: Any) -> None:
        self.cuda_graph = cuda_graph
        self.stream: Any = nullcontext() if stream is None else stream

    def __enter__(self) -> None:
        self.stream.__enter__()
        self.cuda_graph.capture_begin()

    def __exit__(self, *error: object) -> None:
        self.cuda_graph.capture_end()
        self.stream.__exit__(*error)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _made(operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]) -> list[Tensor]:
    """The tensors whose memory the operations allocated."""
    given: set[int] = set()
    made: dict[int, Tensor] = {}
    for _, args, kwargs, result in operations:
        for tensor in _tensors((args, kwargs)):
            address = tensor.untyped_storage().data_ptr()
            if address not in made:
                given.add(address)
        for tensor in _tensors(result):
            address = tensor.untyped_storage().data_ptr()
            if address not in given:
                made.setdefault(address, tensor)
    return list(made.values())
