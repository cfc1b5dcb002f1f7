"""Checkpoints: what is in one, and how it is found and loaded. How one is written stands in `saving`.

    <run.dir>/checkpoints/step_00000120/    weights and optimizer state, in Megatron's sharded format
                          step_00000120/config.yaml      the resolved settings that wrote it
                          step_00000120/model.json       the model's shapes, under the names of `config.ModelConfig`
                          step_00000120/progress.json    where the run stood
                          step_00000120/software.json    version and commit of the code that wrote it
                          step_00000120/tokenizer/       a copy of that of `data.tokenizer`
                          step_00000120/linear_spec_lora/    the drafter adapter, in a stage that trains one
                          step_00000120/manifest.json    size and checksum of every file, written last
                          latest                         name of the newest one

A directory without `.tmp` in its name was written to its end. Whether it still is what was written, `integrity` says.
Nothing random is saved, because nothing random has a state here: order and noise are functions of seed and place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

from nld_train.config.saved import read_saved_config
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.model.ministral3 import Ministral3Model
from nld_train.training.loop.optimizer import load_optimizer, unwrap

LATEST = "latest"
# End of the name of a directory that is being written, or deleted.
UNFINISHED = ".tmp"
# Optimizer state as ordinary sharded tensors in the shape of the weights: any layout can load it. For a moment each
# data-parallel rank has all of it. Megatron's memory-efficient variant collects it over gloo on the first one alone,
# which then writes alone.
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done over the whole run.
        stage: name of the stage that made the last one.
        stage_step: steps done of that stage.
        stage_steps: steps that the stage has in all.
        data: per stage of the run, the fingerprint of its data and order.
    """

    step: int
    stage: str
    stage_step: int
    stage_steps: int
    data: dict[str, str]

    @property
    def ends_stage(self) -> bool:
        """Whether the stage is complete."""
        return self.stage_step == self.stage_steps


def checkpoints_directory(config: Config) -> Path:
    """Where this run keeps its checkpoints."""
    return Path(config.run.dir) / "checkpoints"


def written_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints under `<run.dir>/checkpoints` that were written to their end, the newest first."""
    return sorted((path for path in directory.glob("step_*") if not path.name.endswith(UNFINISHED)), reverse=True)


def unfinished_checkpoints(directory: Path) -> list[Path]:
    """What a kill left while a checkpoint was written or deleted."""
    return sorted(directory.glob(f"step_*{UNFINISHED}"))


def read_progress(directory: Path) -> Progress:
    """Where the run stood that wrote a checkpoint; what another version noted besides is left out."""
    noted = json.loads((directory / "progress.json").read_text())
    return Progress(**{field.name: noted[field.name] for field in fields(Progress)})


def load(directory: Path, model: list[Any], optimizer: Any | None) -> None:
    """Loads weights, and the optimizer's state where there is an optimizer, under any layout.

    Args:
        directory: a sound checkpoint. Megatron's format holds pickles: it is trusted input.
        model: this rank's chunks, wrapped.
        optimizer: fresh, with the settings of now, which it keeps; None to take the weights alone.
    """
    # Copies of one part of the model share out the reading. In a wider group every tensor would go to every process.
    copies = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(directory)), copies)
    state = dist_checkpointing.load(sharded_state(model, optimizer, loading=True), str(directory), strategy)
    for index, chunk in enumerate(model):
        unwrap(chunk).load_state_dict(state[f"model{index}"])
    if optimizer is not None:
        load_optimizer(optimizer, state["optimizer"])


def sharded_state(model: list[Any], optimizer: Any | None, loading: bool = False) -> dict[str, Any]:
    """Every tensor of this rank with its place in the whole; the names do not depend on the layout."""
    state = {f"model{index}": model_state(unwrap(chunk)) for index, chunk in enumerate(model)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=loading, metadata=dict(SHARDING))
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
    for pointer in (given / LATEST, given / "checkpoints" / LATEST):
        if pointer.is_file():
            given = pointer.parent / (pointer.read_text().strip() or "nothing")
            if not given.is_dir():
                raise UserError(
                    f"init.checkpoint: {pointer} names {given.name}, which does not exist; name another one"
                )
            break
    if not (given / "model.json").is_file():
        raise UserError(f"init.checkpoint: {path} is neither a checkpoint nor a run directory with checkpoints/latest")
    return given


def saved_model(directory: Path) -> dict[str, Any]:
    """The model's shapes beside a checkpoint, as in `config.ModelConfig`."""
    shapes: dict[str, Any] = json.loads((directory / "model.json").read_text())
    return shapes


def saved_config(directory: Path, now: Config) -> Config:
    """The settings beside a checkpoint, which another version may have written.

    Args:
        directory: of the checkpoint.
        now: a key that the writer did not know has the value of now: nothing is known that would speak against it.

    Raises:
        UserError: they cannot be read.
    """
    path = directory / "config.yaml"
    try:
        return read_saved_config(path.read_text(), now)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the checkpoint is incomplete") from error
    except UserError as error:
        raise UserError(f"{path}: {error}; go on with the version that wrote it") from error
