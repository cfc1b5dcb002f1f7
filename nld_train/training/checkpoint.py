"""Checkpoints: Megatron's distributed format, written to a temporary place and renamed, with the settings beside it.

    <run.dir>/checkpoints/step_00000120/    weights, optimizer state and progress, in Megatron's sharded format
                          step_00000120/config.yaml      the resolved settings that wrote it
                          step_00000120/model.json       the model's shapes, under the names of `config.ModelConfig`
                          step_00000120/progress.json    where the run stood
                          latest                         name of the newest one

A directory without `.tmp` in its name is complete: the rename is the last act but one, `latest` the last.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

from nld_train.config.load import config_from_yaml, config_to_yaml
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.model.ministral3 import Ministral3Model
from nld_train.training.optimizer import unwrap

_LATEST = "latest"
# Optimizer state as ordinary sharded tensors in the shape of the weights: any layout can load it.
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done over the whole run.
        stage: name of the stage that made the last one.
        stage_step: steps done of that stage.
        data: per stage of the run, the fingerprint of its data and order.
    """

    step: int
    stage: str
    stage_step: int
    data: dict[str, str]


def checkpoints_directory(config: Config) -> Path:
    """Where this run keeps its checkpoints."""
    return Path(config.run.dir) / "checkpoints"


def save(config: Config, model: list[Any], optimizer: Any, progress: Progress) -> Path:
    """Saves the state of the run on all ranks; returns the finished directory.

    Raises:
        UserError: it cannot be written.
    """
    final = checkpoints_directory(config) / f"step_{progress.step:08d}"
    temporary = final.with_name(f"{final.name}.tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(_sharded_state(model, optimizer), str(temporary), content_metadata=dict(_SHARDING))
    dist.barrier()
    if dist.get_rank() == 0:
        (temporary / "config.yaml").write_text(config_to_yaml(config))
        (temporary / "model.json").write_text(json.dumps(asdict(config.model), indent=1))
        (temporary / "progress.json").write_text(json.dumps(asdict(progress), indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        write_atomically(final.with_name(_LATEST), f"{final.name}\n")
    dist.barrier()
    return final


def latest(config: Config) -> Path | None:
    """The newest complete checkpoint of this run, or None where there is none yet.

    Raises:
        UserError: `latest` names a directory that is not there.
    """
    pointer = checkpoints_directory(config) / _LATEST
    if not pointer.exists():
        return None
    directory = pointer.with_name(pointer.read_text().strip())
    if not (directory / "progress.json").is_file():
        raise UserError(f"{pointer}: names {directory.name}, which is not a complete checkpoint; write the name of one")
    return directory


def read_progress(directory: Path) -> Progress:
    """Where the run stood that wrote a checkpoint."""
    return Progress(**json.loads((directory / "progress.json").read_text()))


def load(directory: Path, model: list[Any], optimizer: Any | None) -> None:
    """Loads weights, and the optimizer's state where there is an optimizer, under any layout.

    Args:
        directory: a complete checkpoint.
        model: this rank's chunks, wrapped.
        optimizer: None to take the weights alone.
    """
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(directory)))
    state = dist_checkpointing.load(_sharded_state(model, optimizer, loading=True), str(directory), strategy)
    for index, chunk in enumerate(model):
        unwrap(chunk).load_state_dict(state[f"model{index}"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])


def _sharded_state(model: list[Any], optimizer: Any | None, loading: bool = False) -> dict[str, Any]:
    """Every tensor of this rank with its place in the whole; the names do not depend on the layout."""
    state = {f"model{index}": model_state(unwrap(chunk)) for index, chunk in enumerate(model)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=loading, metadata=dict(_SHARDING))
    return state


def model_state(chunk: Ministral3Model) -> dict[str, Any]:
    """Sharded weights of a model's chunk, under names that every layout and both kinds of layers share.

    Megatron's `_extra_state` entries are left out: they are empty without FP8, and hold amax histories with it, which
    fill again within some steps. A checkpoint so holds weights and nothing that depends on who made them.
    """
    return {name: value for name, value in chunk.sharded_state_dict().items() if not name.endswith("_extra_state")}


def resolve_checkpoint(path: str) -> Path:
    """The checkpoint directory that `init.checkpoint` means: one itself, or the latest of a run directory.

    Raises:
        UserError: there is none.
    """
    given = Path(path)
    for pointer in (given / _LATEST, given / "checkpoints" / _LATEST):
        if pointer.is_file():
            given = pointer.with_name(pointer.read_text().strip())
            break
    if not (given / "model.json").is_file():
        raise UserError(f"init.checkpoint: {path} is neither a checkpoint nor a run directory with checkpoints/latest")
    return given


def saved_model(directory: Path) -> dict[str, Any]:
    """The model's shapes beside a checkpoint, as in `config.ModelConfig`."""
    shapes: dict[str, Any] = json.loads((directory / "model.json").read_text())
    return shapes


def saved_config(directory: Path) -> Config:
    """The settings beside a checkpoint.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return config_from_yaml((directory / "config.yaml").read_text())
    except OSError as error:
        raise UserError(f"{directory}/config.yaml: {error.strerror}; the checkpoint is incomplete") from error
