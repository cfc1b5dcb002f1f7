"""Megatron's save in parts: a plan that all ranks make together, files that each writes by itself, and their index.

`dist_checkpointing.save` and the callbacks that it returns do the same in one call, and write rank 0's small files
between two collectives: if one of those fails, rank 0 raises and the others wait for ever. The format is Megatron's,
and so is the code that reads and writes tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from nld_train.training.checkpoint.collective_errors import on_first_rank
from nld_train.training.checkpoint.load import SHARDING
from nld_train.training.checkpoint.manifest import Checksums, checksums

_FORMAT = ("torch_dist", 1)


@dataclass(frozen=True)
class Plan:
    """What this rank writes, from copies that no step changes; and on rank 0 Megatron's metadata of the whole."""

    writer: Any
    metadata: Any


@dataclass(frozen=True)
class Written:
    """What a rank wrote: sizes and checksums of its files, and what Megatron's index must know of their content."""

    files: Checksums
    results: list[Any]


def plan_save(state: dict[str, Any], directory: Path) -> Plan:
    """Decides which rank writes which tensors, and copies those of this rank; called by all ranks together.

    A tensor that is replicated over data-parallel ranks is copied and written by one of them: each copies and writes a
    part of what their group saves. Everything else is written at once, by rank 0.

    Args:
        state: from `load.sharded_state`; the tensors may change when this returns.
        directory: empty, and seen by every rank.

    Raises:
        RankFailedError: on every rank, if a file could not be written.
    """
    with_format = {**state, "content_metadata": dict(SHARDING)}
    # Whether every tensor is covered is checked below, after they were divided among the ranks.
    tensors, common = save_preprocess(with_format, validate_access_integrity=False)
    on_first_rank(lambda: write_common(common, directory))
    strategy = _PlanOnly(*_FORMAT)
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    _use_local_queue()
    FullyParallelSaveStrategyWrapper(strategy, replicas).apply_saving_parallelization(tensors)
    # Megatron 0.19 has other strategies besides its own, and its default needs another package.
    own = {"async_strategy": "mcore"} if "async_strategy" in signature(strategy.async_save).parameters else {}
    plan: Plan = strategy.async_save(_snapshot(tensors), directory, **own)
    return plan


def write_common(common: dict[str, Any], directory: Path) -> None:
    """Writes everything but the tensors, to the file of Megatron 0.16, which 0.19 reads as well."""
    torch.save(common, directory / COMMON_STATE_FNAME)


class _PlanOnly(TorchDistSaveShardedStrategy):
    """Megatron's strategy, which returns its plan instead of callbacks that carry it out."""

    def _get_save_and_finalize_callbacks(self, writer: Any, planned: Any, *_: Any) -> Plan:
        return Plan(writer, planned[1])


def _snapshot(state: Any) -> Any:
    """The same state over copies, on the CPU, of the tensors that this rank writes; Megatron leaves out the others."""
    if isinstance(state, dict):
        return {key: _snapshot(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_snapshot(value) for value in state]
    if isinstance(state, ShardedTensor) and is_main_replica(state.replica_id):
        state.data = state.data.detach().to("cpu", copy=True)
    return state


def _use_local_queue() -> None:
    """Gives Megatron a queue in this process. It stays empty: `_write_bucket` returns its results.

    Megatron's own queue is in a server process, which takes seconds to start and is killed by the signal that Slurm
    sends to all processes of a job so that they save before it ends.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = Queue()


def write_files(plan: Plan) -> Written:
    """Writes this rank's files, flushes them to the disk, and reads their checksums; may run in a thread of its own.

    It makes no CUDA calls: the copies are on the CPU, and a thread's current device is the first one whatever the
    process has chosen. Megatron would synchronise it, and so allocate memory on another rank's device.

    Raises:
        OSError, RuntimeError: they cannot be written.
    """
    buckets = plan.writer.write_buckets or []
    results = [result for number, bucket in enumerate(buckets) for result in _write_bucket(plan.writer, number, bucket)]
    return Written(checksums(Path(path) for path, _, _ in buckets), results)


def _write_bucket(writer: Any, number: int, bucket: Any) -> list[Any]:
    """Writes one file; returns what Megatron's index needs of it.

    Megatron 0.16 forks a process per file for this, which is unsafe in a process with threads and a CUDA context.
    """
    transforms = [writer.transforms] if hasattr(writer, "transforms") else []
    output: Queue[Any] = Queue()
    ticket: Queue[int] = Queue()
    ticket.put(number)
    FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, output, ticket, True)
    _, result = output.get()
    if isinstance(result, Exception):
        raise result
    written: list[Any] = result
    return written


def write_index(plan: Plan, written: list[Written], directory: Path) -> None:
    """The index over the files of all ranks, by which Megatron finds tensors in them; called by rank 0 alone.

    Raises:
        OSError: it cannot be written.
    """
    plan.writer.finish(plan.metadata, [part.results for part in written])
    save_config(CheckpointingConfig(*_FORMAT), str(directory))
