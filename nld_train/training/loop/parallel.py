"""Devices and process groups: torch.distributed and Megatron's parallel groups, from creation to destruction."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from nld_train.collectives import all_reduce
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.model import cpu_patches
from nld_train.model.accelerator import destroy_overlap_buffers
from nld_train.model.compiled import forget_compiled
from nld_train.training.loop.lost_ranks import naming_lost_ranks


def resolve_device(device: str) -> torch.device:
    """This process's device, for the key `execution.device`.

    Raises:
        UserError: CUDA is requested and not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("execution.device: cuda is requested, but torch sees no CUDA device; use execution.device=cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def parallel_groups(config: Config) -> Iterator[torch.device]:
    """Creates the process group and Megatron's groups, yields this process's device, and destroys them at the end.

    Raises:
        UserError: a rank does not answer any more, or never came.
    """
    device = resolve_device(config.execution.device)
    if device.type == "cpu":
        cpu_patches.install()
    else:
        torch.cuda.set_device(device)
    _join(device, timedelta(minutes=config.execution.timeout_minutes))
    try:
        with naming_lost_ranks(config.execution.timeout_minutes):
            _build_groups(config)
            yield device
    finally:
        _leave()


def _join(device: torch.device, timeout: timedelta) -> None:
    """Initialises torch.distributed; without torchrun, a group of this process alone."""
    backend = "gloo" if device.type == "cpu" else "nccl"
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        _join_torchrun(backend, timeout)
    if backend != "gloo":
        global _host_group
        _host_group = dist.new_group(backend="gloo", timeout=timeout)


def _join_torchrun(backend: str, timeout: timedelta) -> None:
    """Initialises torch.distributed with the processes that torchrun has started."""
    # The jobs of a sweep run one after another in the same processes. With its own prefix, a job does not read the keys
    # that the previous one left in the store, on which gloo would wait forever.
    store = dist.PrefixStore(f"job_{next(_jobs)}", _torchrun_store(timeout))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


_jobs = itertools.count()


@cache
def _torchrun_store(timeout: timedelta) -> dist.Store:
    """The store of torchrun's environment, opened once.

    Raises:
        UserError: another program has its port, nobody listens there, or some process has not come.
    """
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    except dist.DistNetworkError as error:
        reason = "another program has this port" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        raise UserError(f"{address}: {reason}; choose another port (torchrun --master-port, MASTER_PORT)") from error
    except dist.DistStoreError as error:
        raise UserError(f"{address}: not all processes have come ({str(error).splitlines()[0]})") from error
    return store


def _build_groups(config: Config) -> None:
    from megatron.core import parallel_state, tensor_parallel

    parallel = config.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        context_parallel_size=parallel.context,
        # Annotated as an integer, but only made into a timedelta.
        distributed_timeout_minutes=config.execution.timeout_minutes,
    )
    # The model has no dropout and uses no random generator, but Megatron's recomputation saves their states.
    tensor_parallel.model_parallel_cuda_manual_seed(config.run.seed, force_reset_rng=True)


# All processes, for values in host memory; None where the default group communicates through host memory already.
_host_group: dist.ProcessGroup | None = None


def _leave() -> None:
    from megatron.core import parallel_state

    global _host_group
    _host_group = None
    forget_compiled()
    # Before their groups are destroyed.
    destroy_overlap_buffers()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def sum_over_world(values: Tensor) -> Tensor:
    """All-reduces values on their device over all processes, in float64, without a host synchronisation."""
    total = values.double().contiguous()
    all_reduce(total)
    return total


def reduce_over_hosts(values: list[int], operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> list[int]:
    """All-reduces integers in host memory over all processes, so that no host waits for its device."""
    total = torch.tensor(values, dtype=torch.int64)
    all_reduce(total, operation, _host_group)
    return [int(value) for value in total.tolist()]


def sum_over_data_ranks(values: list[int]) -> list[int]:
    """The sum over all data-parallel ranks, on every process.

    The ranks of a model replica have the same values, of which one is counted.
    """
    from megatron.core import parallel_state

    counted = parallel_state.get_model_parallel_group().rank() == 0 and parallel_state.get_context_parallel_rank() == 0
    return reduce_over_hosts(values if counted else [0] * len(values))
