"""How a decode cycle runs: one call on a CPU; on a GPU over buffers at fixed addresses, mostly as a CUDA graph.

A cycle is what a decoder computes between two readings of the host: one or two forwards, sampling and acceptance. A
forward over a few tokens consists of about a thousand small kernels, and launching them from Python takes longer than
they run. A graph launches them at once, but it computes on the addresses and shapes that it was captured with, and
Python does not run in it. So a cycle is a function of nothing but its input tensors and its key.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = Mapping[str, Tensor]
# The tensors of a cycle from its inputs. The first is what the host reads.
Function = Callable[[Inputs], tuple[Tensor, ...]]

# Graphs that are kept at once; the one that was not used for the longest time is dropped first.
MOST_GRAPHS = 64
# Uses of a key before it is captured: the first one of a shape loads kernels and allocates, which no graph may.
EAGER_USES = 1
# Attention reads a number of entries that is a multiple of this, or of an eighth of it where that is larger.
_ENTRIES = 256


@dataclass(frozen=True)
class Ran:
    """A cycle's result.

    Attributes:
        outputs: its tensors; those of fixed cycles are overwritten by the next cycle.
        as_graph: whether a graph computed them.
    """

    outputs: tuple[Tensor, ...]
    as_graph: bool = False


class Cycles(Protocol):
    """Runs the cycles of an engine.

    Attributes:
        fixed: whether the inputs come to the engine's device in buffers of fixed shapes, so that steps are fixed ones.
    """

    fixed: bool

    @property
    def graphless(self) -> str | None:
        """Why no cycle runs as a graph, for a message; None if cycles do."""

    def run(self, key: Hashable | None, function: Function, inputs: Inputs, rows: int) -> Ran:
        """Runs a cycle.

        Args:
            key: everything that the function depends on beside its inputs and their shapes; None: it is not captured.
            function: of the inputs.
            inputs: `[a, ...]` each. Numbers (int64, float64, bool) on the CPU, logits on the engine's device.
            rows: a or more: fixed cycles run over so many rows; those after the first a have zeros in every input.
        """


def check_graphs(cycles: Cycles, wanted: str) -> None:
    """Refuses graphs that are wanted where there can be none.

    Args:
        cycles: of the engine.
        wanted: `auto`, `on` or `off`.

    Raises:
        ValueError: `on`, and no cycle runs as a graph.
    """
    if wanted == "on" and (reason := cycles.graphless) is not None:
        raise ValueError(f"cuda_graphs: no cycle can run as one: {reason}")


class DirectCycles:
    """Every cycle is one call of its function on its inputs."""

    fixed = False
    graphless = "they need a CUDA device, and a model in one pipeline stage whose attention takes masks"

    def run(self, key: Hashable | None, function: Function, inputs: Inputs, rows: int) -> Ran:
        """See `Cycles.run`."""
        del key, rows
        return Ran(function(inputs))


class Graph(Protocol):
    """A captured function without arguments: `replay` computes the same again, into the same tensors."""

    def replay(self) -> None:
        """Computes again from what the captured addresses hold now."""


class GraphMaker(Protocol):
    """Captures functions; see `cuda_graphs.CudaGraphs`."""

    def running(self) -> AbstractContextManager[object]:
        """The context in which cycles run, captured or not."""

    def capture(self, function: Callable[[], None]) -> Graph:
        """Captures a function, which has been called before. It is not run by that.

        Raises:
            RuntimeError: it cannot be captured.
        """


class FixedCycles:
    """Cycles over buffers at fixed addresses, with one copy to the device for all numbers of a cycle.

    Args:
        device: of the engine.
        graphs: captures cycles; None runs every cycle eagerly.
    """

    fixed = True

    def __init__(self, device: torch.device, graphs: GraphMaker | None = None) -> None:
        self.device = device
        self.graphs = graphs
        # Why no more graphs are captured, once one could not be.
        self.refused: str | None = None
        self._buffers: dict[Hashable, Tensor] = {}
        self._packings: dict[Hashable, _Packing] = {}
        self._uses: Counter[Hashable] = Counter()
        self._captured: OrderedDict[Hashable, tuple[Graph, tuple[Tensor, ...]]] = OrderedDict()

    @property
    def graphless(self) -> str | None:
        """See `Cycles.graphless`."""
        return "the model is divided over several processes" if self.graphs is None else self.refused

    def reset(self) -> None:
        """Drops all graphs and buffers: the KV cache, whose addresses are in them, has been replaced."""
        for kept in (self._captured, self._uses, self._packings, self._buffers):
            kept.clear()

    def run(self, key: Hashable | None, function: Function, inputs: Inputs, rows: int) -> Ran:
        """See `Cycles.run`."""
        if self.graphs is None or key is None:
            return Ran(self._eager(function, self._filled(inputs, rows)))
        shapes = tuple((name, rows, *tensor.shape[1:]) for name, tensor in inputs.items())
        with self.graphs.running():
            return self._run((key, shapes), function, self._filled(inputs, rows))

    def _run(self, key: Hashable, function: Function, inputs: Inputs) -> Ran:
        if key in self._captured:
            self._captured.move_to_end(key)
        elif self.refused is not None or self._uses[key] < EAGER_USES:
            self._uses[key] += 1
            return Ran(self._eager(function, inputs))
        elif not self._capture(key, function, inputs):
            return Ran(self._eager(function, inputs))
        graph, outputs = self._captured[key]
        graph.replay()
        return Ran(outputs, as_graph=True)

    def _capture(self, key: Hashable, function: Function, inputs: Inputs) -> bool:
        assert self.graphs is not None
        outputs: list[tuple[Tensor, ...]] = []
        try:
            graph = self.graphs.capture(lambda: outputs.append(self._eager(function, inputs)))
        except RuntimeError as error:
            self.refused = f"capturing one failed ({' '.join(str(error).split())})"
            warnings.warn(f"decoding goes on without CUDA graphs: {self.refused}", stacklevel=2)
            return False
        self._captured[key] = graph, outputs[0]
        if len(self._captured) > MOST_GRAPHS:
            dropped, _ = self._captured.popitem(last=False)
            self._uses[dropped] = 0
        return True

    def _eager(self, function: Function, inputs: Inputs) -> tuple[Tensor, ...]:
        """The outputs in buffers that all cycles share: graphs would each keep theirs, and logits are large."""
        results = function(inputs)
        return tuple(self._buffer(("output", index), result).copy_(result) for index, result in enumerate(results))

    def _filled(self, inputs: Inputs, rows: int) -> Inputs:
        """The buffers with the values of a cycle, padded with rows of zeros."""
        padded = {name: _padded(tensor, rows) for name, tensor in inputs.items()}
        numbers = {name: tensor for name, tensor in padded.items() if not _large(tensor)}
        layout = tuple((name, tensor.dtype, *tensor.shape) for name, tensor in numbers.items())
        if layout not in self._packings:
            self._packings[layout] = _Packing(numbers, self.device)
        filled = dict(self._packings[layout].fill(numbers))
        for name, tensor in padded.items():
            if _large(tensor):
                filled[name] = self._buffer(("input", name), tensor).copy_(tensor)
        return filled

    def _buffer(self, name: Hashable, like: Tensor) -> Tensor:
        key = (name, like.shape, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(like, memory_format=torch.contiguous_format)
        return self._buffers[key]


class _Packing:
    """Numbers of one layout in one buffer of 8 bytes each on the host, and one on the device.

    Args:
        tensors: int64, float64 or bool, of the layout.
        device: of the second buffer.
    """

    def __init__(self, tensors: Inputs, device: torch.device) -> None:
        total = sum(tensor.numel() for tensor in tensors.values())
        # Pinned, so that the copy neither waits for the device nor for a staging buffer. The host writes it again only
        # after it has read the cycle's result, and so after the copy.
        self._host = torch.empty(total, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.empty(total, dtype=torch.int64, device=device)
        self._parts = _views(self._host, tensors)
        self._views = _views(self._device, tensors)

    def fill(self, tensors: Inputs) -> Inputs:
        """The tensors on the device, after one copy."""
        for name, tensor in tensors.items():
            self._parts[name].copy_(tensor)
        self._device.copy_(self._host, non_blocking=True)
        return self._views


def _views(buffer: Tensor, tensors: Inputs) -> dict[str, Tensor]:
    """A view of the buffer for each tensor; bool ones are int64 there, 0 or 1."""
    parts = buffer.split([tensor.numel() for tensor in tensors.values()])
    return {
        name: (part.view(torch.float64) if tensor.dtype == torch.float64 else part).view(tensor.shape)
        for part, (name, tensor) in zip(parts, tensors.items(), strict=True)
    }


def _large(tensor: Tensor) -> bool:
    """Whether an input is on the device already: logits are, numbers are not."""
    return tensor.dtype not in (torch.int64, torch.float64, torch.bool)


def _padded(tensor: Tensor, rows: int) -> Tensor:
    missing = rows - len(tensor)
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, missing)) if missing else tensor


def rounded_entries(entries: int) -> int:
    """At least as many entries, in steps of an eighth, so that few shapes occur while a text grows."""
    step = max(_ENTRIES, 2 ** (entries.bit_length() - 4))
    return entries + -entries % step


def rounded_rows(rows: int, slots: int) -> int:
    """At least as many rows, a power of two or all slots, so that few shapes occur while sequences end."""
    return min(slots, 1 << (rows - 1).bit_length())
