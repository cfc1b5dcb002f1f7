"""`CUDA_DEVICE_MAX_CONNECTIONS`, which CUDA reads once, when it starts in a process.

With one connection the kernels of all streams of a process start in the order in which they were issued. Megatron's
tensor parallelism needs that on devices before Blackwell: it issues a collective and then the matrix product that is
to hide it, and the product must not take all multiprocessors first (`megatron/core/tensor_parallel/layers.py`). Its
own launcher requires the same for context parallelism. Without either, CUDA's default of several connections lets
reductions of gradients start beside the backward pass. Only the standard library is imported here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nld_train.processes import rank

if TYPE_CHECKING:
    from nld_train.config.schema import Config

VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"
_IN_ORDER = "1"
# Blackwell, whose streams have priorities instead.
_FIRST_WITHOUT = 10


def set_connections(configs: Iterable[Config]) -> None:
    """Sets the variable for the runs of this process, before CUDA starts; a value that is set already stays.

    Args:
        configs: the runs; in one process CUDA has one value for all of them.
    """
    ordered = next((words for config in configs if (words := _ordered_layout(config))), None)
    if ordered is None or (capability := compute_capability()) is None or capability[0] >= _FIRST_WITHOUT:
        return
    given = os.environ.setdefault(VARIABLE, _IN_ORDER)
    if given != _IN_ORDER and rank() == 0:
        print(
            f"warning: {VARIABLE}={given}: {ordered} on a device of compute capability {capability[0]}.{capability[1]} "
            f"needs {_IN_ORDER}, or communication starts too late to be hidden; the run continues with {given}",
            file=sys.stderr,
        )


def _ordered_layout(config: Config) -> str | None:
    """The first setting of a run on GPUs that needs kernels to start in order; None where none does."""
    if config.execution.device == "cpu" or config.run.dry:
        return None
    sizes = {"parallel.tensor": config.parallel.tensor, "parallel.context": config.parallel.context}
    return next((f"{key}={size}" for key, size in sizes.items() if size > 1), None)


def compute_capability() -> tuple[int, int] | None:
    """Major and minor number of this machine's first GPU; None where there is no driver or no GPU.

    From the driver's management library (NVML), since a question to CUDA would start it. The GPUs of a machine are
    taken to be of one kind.
    """
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if library.nvmlInit_v2() != 0:
        return None
    try:
        device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(device)) != 0:
            return None
        if library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)) != 0:
            return None
        return major.value, minor.value
    finally:
        library.nvmlShutdown()
