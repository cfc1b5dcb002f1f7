"""Writes checkpoints during training: a snapshot at once, files in the background, a rename at the end.

`begin` copies the state and plans the write with Megatron; after it the next step may change every weight. A thread of
each rank writes that rank's files and their checksums. `finish` is called by all ranks together when all have
written: it completes the directory, flushes it to the disk, renames it, updates `latest` and applies the retention
rules.
A kill or a loss of power at any moment leaves either the complete directory or one that ends in `.tmp`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nld_train.config.load import config_to_yaml
from nld_train.config.schema import Config
from nld_train.data.chat.run_template import run_template, with_template
from nld_train.data.tokenizer_files import TOKENIZER, read_tokenizer, write_tokenizer
from nld_train.errors import UserError
from nld_train.files import is_full, set_aside, synchronise, synchronise_all, write_atomically
from nld_train.model.adapter_files import AdapterShape, write_adapter
from nld_train.model.adapters import ROLES, adapter_shape, adapter_tensors
from nld_train.revision import SOFTWARE, software
from nld_train.training.checkpoint.collective_errors import RankFailedError, on_every_rank, on_first_rank
from nld_train.training.checkpoint.contents import Progress
from nld_train.training.checkpoint.load import sharded_state
from nld_train.training.checkpoint.manifest import write_manifest
from nld_train.training.checkpoint.megatron_save import Plan, Written, plan_save, write_files, write_index
from nld_train.training.checkpoint.paths import (
    CONFIG_FILE,
    LATEST,
    MODEL_FILE,
    PROGRESS_FILE,
    checkpoint_name,
    checkpoints_directory,
    step_of_name,
    written_checkpoints,
)
from nld_train.training.checkpoint.retention import apply_retention, delete, make_room, move_aside
from nld_train.training.loop.finite import refuse_non_finite_state
from nld_train.training.loop.optimizer import gather_parameters, unwrap
from nld_train.training.loop.parallel import reduce_over_hosts


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    progress: Progress
    final: Path
    temporary: Path
    plan: Plan
    written: Future[Written]
    adapters: dict[str, tuple[AdapterShape, dict[str, Tensor]]]


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time.

    The weights of a checkpoint are finite numbers, but the loss that they give is known only after the next step. Older
    checkpoints are deleted after that step, so that there is one left to go back to.

    Args:
        config: the run; saved beside the weights.
        device: of this process.
        resumed: the checkpoint that the run continues from, if any.

    Raises:
        UserError: on every rank, if `data.tokenizer` cannot be read.
    """

    def __init__(self, config: Config, device: torch.device, resumed: Path | None = None) -> None:
        self.config = config
        self.device = device
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._newest = resumed
        # Whether a step was made from the state of the newest checkpoint, complete or pending.
        self._followed = False
        # Whether older checkpoints than the newest are still to be deleted.
        self._retention_due = False
        # On rank 0; read at the start, because the files may change during the run.
        self._software: dict[str, Any] = {}
        self._tokenizer: dict[str, bytes] = {}
        try:
            on_first_rank(self._read_descriptions)
        except RankFailedError as error:
            raise UserError(f"data.tokenizer: {config.data.tokenizer} cannot be read ({error.reason})") from error

    def _read_descriptions(self) -> None:
        self._software = software()
        if self.config.data.tokenizer is not None:
            files, template = read_tokenizer(Path(self.config.data.tokenizer)), run_template(self.config)
            self._tokenizer = files if template is None else with_template(files, template)

    def begin(self, model: list[Any], optimizer: Any, progress: Progress) -> None:
        """Takes a snapshot and starts to write it; the state may change when this returns. Waits for the previous one.

        Raises:
            UserError: on every rank, if the checkpoint cannot be written.
            NonFiniteUpdateError: on every rank, if a weight or a part of the optimizer's state is not a finite number.
        """
        self.finish()
        final = checkpoints_directory(Path(self.config.run.dir)) / checkpoint_name(progress.step)
        gather_parameters(model)
        refuse_non_finite_state(model, optimizer, progress.step)
        self._followed = False
        with _user_error(final):
            temporary = on_first_rank(lambda: make_room(final))
        with _user_error(final, temporary):
            # A rank that cannot reach it fails here, and not within Megatron, where the others would wait for it.
            on_every_rank(lambda: temporary.mkdir(parents=True, exist_ok=True))
            plan = plan_save(sharded_state(model, optimizer), temporary)
        written = self._threads.submit(write_files, plan)
        self._pending = _Pending(progress, final, temporary, plan, written, _adapters(model))
        if not self.config.checkpoint.asynchronous:
            self.finish()

    def poll(self) -> None:
        """Finishes the pending checkpoint if all ranks have written their files; called by all after each step.

        The step has shown that the newest snapshot is good.
        """
        self._followed = True
        if self._pending is not None:
            (waiting,) = reduce_over_hosts([0 if self._pending.written.done() else 1])
            if not waiting:
                self.finish()
        self._apply_retention()

    def finish(self) -> None:
        """Waits for the pending checkpoint, if there is one, and completes it; called by all ranks together.

        Raises:
            UserError: on every rank, if a rank could not write its files.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with _user_error(pending.final, pending.temporary):
            written = on_every_rank(pending.written.result)
            on_first_rank(lambda: self._complete(pending, written))
        self._newest, self._retention_due = pending.final, True
        self._apply_retention()

    def close(self) -> None:
        """Finishes the last checkpoint, after which no step is made."""
        self.finish()
        self._followed = True
        self._apply_retention()

    def _apply_retention(self) -> None:
        if self._retention_due and self._followed:
            self._retention_due = False
            if dist.get_rank() == 0 and self._newest is not None:
                apply_retention(self._newest, self.config.checkpoint)

    def advice(self, newest_is_good: bool) -> str:
        """What to do after a step failed because a number was not finite.

        Args:
            newest_is_good: False if the failed step shows that the weights before it were the cause. Those may be the
                weights of the newest checkpoint.
        """
        remedy = "with a lower learning rate" if newest_is_good else "with a lower learning rate or other data"
        if self._newest is None:
            return f"there is no checkpoint yet; start again {remedy}"
        if newest_is_good or self._followed:
            return f"the last checkpoint, {self._newest}, is unchanged; resume from it {remedy}"
        newest, written = step_of_name(self._newest.name), written_checkpoints(self._newest.parent)
        earlier = [path for path in written if step_of_name(path.name) < newest]
        if not earlier:
            return f"{self._newest}, the only checkpoint, leads to the same; delete it and begin again {remedy}"
        return f"{self._newest} leads to the same; delete it and resume from {earlier[0].name} {remedy}"

    def _complete(self, pending: _Pending, written: list[Written]) -> None:
        """Rank 0: the small files, the manifest, the rename and `latest`."""
        directory = pending.temporary
        write_index(pending.plan, written, directory)
        (directory / CONFIG_FILE).write_text(config_to_yaml(self.config))
        (directory / MODEL_FILE).write_text(json.dumps(asdict(self.config.model), indent=1))
        (directory / PROGRESS_FILE).write_text(json.dumps(asdict(pending.progress), indent=1))
        (directory / SOFTWARE).write_text(json.dumps(self._software, indent=1))
        # So that a checkpoint can be used after it was copied elsewhere.
        write_tokenizer(self._tokenizer, directory / TOKENIZER)
        for name, adapter in pending.adapters.items():
            write_adapter(directory / name, *adapter)
        write_manifest(directory, {name: entry for part in written for name, entry in part.files.items()})
        _put_in_place(directory, pending.final)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Renames a complete checkpoint to its final name, and writes that name to `latest`.

    Each change is on the disk before the next begins, so that a name never points at missing files. Older checkpoints
    are deleted only after that.
    """
    synchronise_all(temporary)
    # An existing checkpoint of the same step is damaged: otherwise the run would have continued from it.
    damaged = move_aside(final) if final.exists() else None
    os.replace(temporary, final)
    synchronise(final.parent)
    _write_latest(final)
    synchronise(final.parent)
    if damaged is not None:
        delete(damaged)


def _write_latest(final: Path) -> None:
    pointer = final.with_name(LATEST)
    if pointer.is_dir() and not pointer.is_symlink():  # not this program's: a file cannot replace it
        set_aside(pointer)
    write_atomically(pointer, f"{final.name}\n")


@contextmanager
def _user_error(final: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turns a failed file operation into a message for the user, on every rank.

    Args:
        final: the checkpoint.
        temporary: deleted then, so that it does not fill the disk; no rank writes there any more.
    """
    try:
        yield
    except RankFailedError as error:
        # torch reports a full disk as a position in its file.
        reason = os.strerror(errno.ENOSPC) if is_full(final.parent) else error.reason
        if temporary is not None and dist.get_rank() == 0 and temporary.exists():
            delete(temporary)
        raise UserError(
            f"checkpoint {final} could not be written by rank {error.rank} ({reason}); "
            "free space or repair run.dir, and start again: the previous checkpoint is unchanged"
        ) from error


def _adapters(model: list[Any]) -> dict[str, tuple[AdapterShape, dict[str, Tensor]]]:
    """The adapters of a model by the name of their directory: shape, and on rank 0 the tensors under PEFT's names."""
    chunks = [unwrap(chunk) for chunk in model]
    shapes = {role: adapter_shape(chunks, role) for role in ROLES}
    return {
        role.directory: (shape, adapter_tensors(chunks, role)) for role, shape in shapes.items() if shape is not None
    }
