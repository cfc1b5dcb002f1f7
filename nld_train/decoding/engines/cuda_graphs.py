"""Captures functions as CUDA graphs that share one stream and one pool of memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from nld_train.decoding.engines.cycles import Cycles, DirectCycles, FixedCycles


def cycles_on(device: torch.device, fixed: bool = True, captured: bool = True) -> Cycles:
    """How the cycles of an engine on a device run.

    Args:
        device: of the engine.
        fixed: whether the engine can run fixed steps.
        captured: whether they can be captured.
    """
    if device.type != "cuda" or not fixed:
        return DirectCycles()
    return FixedCycles(device, CudaGraphs(device) if captured else None)


class CudaGraphs:
    """A `cycles.GraphMaker` for one device.

    Everything runs on one side stream, captured or not, since a capture must not be on the default stream, and cuBLAS
    has a workspace for each stream, which the first eager run allocates. The graphs share a pool: each uses its memory
    only while it runs, and they run one after another.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def running(self) -> Iterator[None]:
        """See `cycles.GraphMaker.running`: the side stream begins after the current one, which then waits for it."""
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """See `cycles.GraphMaker.capture`.

        `torch.cuda.graph` would collect garbage and empty the cache of the allocator before every capture, which takes
        longer than the capture.
        """
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.disable()  # a finalizer that frees memory of the device would spoil the capture
        try:
            # Other threads (of NCCL, of the data loader) may go on calling CUDA.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                function()
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        return graph
