"""Writing checkpoints behind the training steps: a snapshot at once, files in the background, a rename at the end.

`begin` copies the state and plans the write with Megatron; from then on the step may change every weight. A thread of
each rank writes that rank's files and their checksums. `finish` is called by all ranks together when all have
written: it completes the directory, renames it, moves `latest` and applies the retention rules. A kill at any moment
leaves either the complete directory or one that ends in `.tmp`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch import Tensor

from nld_train.config.load import config_to_yaml
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.model.adapter_files import DIRECTORY, AdapterShape, write_adapter
from nld_train.model.drafter_adapter import adapter_shape, adapter_tensors
from nld_train.revision import SOFTWARE, software
from nld_train.training.checkpoint import (
    LATEST,
    SHARDING,
    UNFINISHED,
    Progress,
    checkpoints_directory,
    sharded_state,
    unfinished_checkpoints,
)
from nld_train.training.integrity import Checksums, checksums, write_manifest
from nld_train.training.optimizer import unwrap
from nld_train.training.parallel import sum_over_world
from nld_train.training.retention import apply_retention


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    progress: Progress
    temporary: Path
    request: Any
    written: Future[Checksums]
    adapter: tuple[AdapterShape, dict[str, Tensor]] | None


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time.

    Args:
        config: the run; saved beside the weights.
        device: of this process.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        # Of the code that is running, whatever becomes of its files while it runs.
        self._software = software() if dist.get_rank() == 0 else {}
        _collect_results_here()

    def begin(self, model: list[Any], optimizer: Any, progress: Progress) -> None:
        """Takes a snapshot and starts to write it; the state may change when this returns. Waits for the one before.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        self.finish()
        temporary = checkpoints_directory(self.config) / f"step_{progress.step:08d}{UNFINISHED}"
        self._on_first_rank(temporary, lambda: _make_room(temporary))
        state = _snapshot(sharded_state(model, optimizer))
        request = dist_checkpointing.save(
            state, str(temporary), async_sharded_save=True, content_metadata=dict(SHARDING)
        )
        assert request is not None, "an asynchronous save returns a request"
        written = self._threads.submit(_write, request, temporary, dist.get_rank())
        self._pending = _Pending(progress, temporary, request, written, _adapter(model))
        if not self.config.checkpoint.asynchronous:
            self.finish()

    def poll(self) -> None:
        """Finishes the checkpoint under way if all ranks have written their part; called by all after each step."""
        if self._pending is None:
            return
        waiting = sum_over_world([0.0 if self._pending.written.done() else 1.0], self.device)[0]
        if waiting == 0:
            self.finish()

    def finish(self) -> None:
        """Waits for the checkpoint under way, if there is one, and completes it; called by all ranks together.

        Raises:
            UserError: on every rank, if a rank could not write its part.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        parts = self._gather(pending)
        for finalize in pending.request.finalize_fns:
            finalize()
        known = {name: entry for part in parts for name, entry in part.items()}
        self._on_first_rank(pending.temporary, lambda: self._complete(pending, known))

    def _on_first_rank(self, temporary: Path, act: Callable[[], None]) -> None:
        """Does something on rank 0 while the others wait; if the disk refuses it, all ranks leave with one line."""
        refused: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                act()
            except OSError as error:
                refused[0] = str(error)
        dist.broadcast_object_list(refused, src=0)
        if refused[0] is not None:
            raise _cannot_write(temporary, 0, refused[0])

    def _gather(self, pending: _Pending) -> list[Checksums]:
        """Checksums of every rank's files, on every rank."""
        try:
            mine: Checksums | str = pending.written.result()
        except Exception as error:  # what it was is raised on every rank below, as one line
            mine = f"{type(error).__name__}: {error}"
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        for rank, part in enumerate(parts):
            if isinstance(part, str):
                raise _cannot_write(pending.temporary, rank, part)
        return parts

    def _complete(self, pending: _Pending, known: Checksums) -> None:
        """Rank 0: the small files, the manifest, the rename, `latest`, and what is no longer kept."""
        directory = pending.temporary
        (directory / "config.yaml").write_text(config_to_yaml(self.config))
        (directory / "model.json").write_text(json.dumps(asdict(self.config.model), indent=1))
        (directory / "progress.json").write_text(json.dumps(asdict(pending.progress), indent=1))
        (directory / SOFTWARE).write_text(json.dumps(self._software, indent=1))
        if pending.adapter is not None:
            write_adapter(directory / DIRECTORY, *pending.adapter)
        write_manifest(directory, known)
        final = directory.with_name(directory.name.removesuffix(UNFINISHED))
        if final.exists():  # damaged: a run that found it sound would not have made its steps again
            shutil.rmtree(final)
        os.replace(directory, final)
        write_atomically(final.with_name(LATEST), f"{final.name}\n")
        apply_retention(final, self.config.checkpoint)


def _make_room(temporary: Path) -> None:
    """An empty directory to write into; what a killed run left half-written or half-deleted goes."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for leftover in unfinished_checkpoints(temporary.parent):
        shutil.rmtree(leftover)
    temporary.mkdir()


def _cannot_write(temporary: Path, rank: int, reason: str) -> UserError:
    return UserError(
        f"checkpoint {temporary} could not be written by rank {rank} ({reason}); "
        "free space or mend run.dir, and start again: the checkpoint before it is untouched"
    )


def _adapter(model: list[Any]) -> tuple[AdapterShape, dict[str, Tensor]] | None:
    """The drafter adapter of a model that has one: its shape, and on rank 0 its tensors under PEFT's names."""
    chunks = [unwrap(chunk) for chunk in model]
    shape = adapter_shape(chunks)
    return None if shape is None else (shape, adapter_tensors(chunks))


def _snapshot(state: Any) -> Any:
    """The same sharded state over copies of its tensors, on the CPU."""
    if isinstance(state, dict):
        return {key: _snapshot(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_snapshot(value) for value in state]
    if isinstance(state, ShardedBase) and not isinstance(state, ShardedObject) and state.data is not None:
        state.data = state.data.detach().to("cpu", copy=True)
        return state
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    return state


def _write(request: Any, directory: Path, rank: int) -> Checksums:
    """In the background: this rank's files, as Megatron planned them, and their checksums."""
    if request.async_fn is not None:
        _, _, results = request.async_fn_args
        results.put(dict(_write_buckets(request.async_fn.args[0], request.preload_fn())))
    return checksums(sorted(directory.glob(f"__{rank}_*.distcp")))


def _write_buckets(transforms: list[Any], buckets: list[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Writes one file after another in this thread; yields each one's number and what Megatron's metadata needs of it.

    Megatron 0.16 forks a process per file for this, which a process with threads and a CUDA context had better not.
    """
    for number, bucket in enumerate(buckets):
        output: Queue[Any] = Queue()
        ticket: Queue[int] = Queue()
        ticket.put(number)
        FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, output, ticket, True)
        _, result = output.get()
        if isinstance(result, Exception):
            raise result
        yield number, result


def _collect_results_here() -> None:
    """Lets Megatron collect what writers report in a queue of this process.

    Its default is a queue in a server process, which takes seconds to start and dies of a signal that Slurm sends to
    all processes of a job just when it is needed: to save before the job ends.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = Queue()
