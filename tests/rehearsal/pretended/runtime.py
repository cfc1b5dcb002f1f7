"""`torch.cuda` of a machine with one H100, whose work is done when it is asked for."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from pretended import graphs
from pretended.ledger import LEDGER, SYNC
from pretended.memory import MEMORY

INDEX = int(os.environ.get("LOCAL_RANK", "0"))  # of the device
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    shared_memory_per_block_optin=232448,
    warp_size=32,
)


class Stream:
    """A stream; streams run in order of issue, so that races between them are not found."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0
        self.device = torch.device("cuda", INDEX)

    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record()
        return event

    def synchronize(self) -> None:
        LEDGER.note(SYNC, "stream.synchronize")

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class Event:
    """An event: waiting for it completes the copies that were pending when it was recorded."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.position = 0

    def record(self, *_: Any) -> None:
        self.position = LEDGER.position

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        LEDGER.complete(self.position)
        return True

    def synchronize(self) -> None:
        LEDGER.wait(self.position, "event.synchronize")

    def elapsed_time(self, _: Any) -> float:
        return 1.0


def _of_values(dtype: torch.dtype, values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device="cuda")


@contextmanager
def _nothing(*_: Any, **__: Any) -> Any:
    yield


def install() -> None:
    """Replaces the functions of `torch.cuda` that are called."""
    current, cuda = Stream(), torch.cuda

    def seed(number: int) -> None:
        torch.default_generator.manual_seed(number)  # the device has the CPU's generator

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "reset_peak_memory_stats": lambda *_: MEMORY.reset_peak(),
        "device_count": lambda: INDEX + 1,
        "current_device": lambda: INDEX,
        "set_device": lambda *_: None,
        "device": _nothing,
        "get_device_properties": lambda *_: PROPERTIES,
        "get_device_capability": lambda *_: (PROPERTIES.major, PROPERTIES.minor),
        "get_device_name": lambda *_: PROPERTIES.name,
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": lambda *_: LEDGER.note(SYNC, "cuda.synchronize"),
        "empty_cache": lambda: None,
        "manual_seed": seed,
        "manual_seed_all": lambda *_: None,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_, **__: current,
        "default_stream": lambda *_, **__: current,
        "stream": lambda stream: stream or current,
        "CUDAGraph": graphs.CUDAGraph,
        "graph": graphs.graph,
        "graph_pool_handle": lambda: (0, 0),
        "is_current_stream_capturing": lambda: LEDGER.capturing,
        "mem_get_info": lambda *_: (PROPERTIES.total_memory - MEMORY.allocated, PROPERTIES.total_memory),
        "memory_stats": lambda *_, **__: {},
    }
    for name in ("memory_allocated", "memory_reserved"):
        answers[name] = lambda *_: MEMORY.allocated
    for name in ("max_memory_allocated", "max_memory_reserved"):
        answers[name] = lambda *_: MEMORY.peak
    for name, dtype in (("FloatTensor", torch.float32), ("LongTensor", torch.int64), ("IntTensor", torch.int32)):
        answers[name] = partial(_of_values, dtype)
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    accelerator: Any = torch.accelerator  # asked by torch's DataLoader, which pins
    accelerator.is_available = lambda: True
    accelerator.current_accelerator = lambda *_: torch.device("cuda")
    accelerator.current_device_index = lambda: INDEX
    accelerator.set_device_index = lambda *_: None
    cuda.random.get_rng_state, cuda.random.set_rng_state = answers["get_rng_state"], answers["set_rng_state"]
    nccl: Any = cuda.nccl  # its version is in the log of a checkpoint's loader
    nccl.version = lambda: (2, 27, 5)
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, lambda *_, **__: None)
