"""Loading the weights and the optimizer's state of a checkpoint, under any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

from nld_train.config.load import model_from_dict
from nld_train.config.vision_tensors import is_vision_key
from nld_train.errors import UserError
from nld_train.model.adapters import LORA, adapter_shape, merge_saved_lora
from nld_train.training.checkpoint.contents import saved_model
from nld_train.training.checkpoint.scaling_state import fill, only_stored, split_state
from nld_train.training.loop.finite import non_finite_state
from nld_train.training.loop.optimizer import load_optimizer, unwrap

# Optimizer state as ordinary sharded tensors in the shape of the weights: any layout can load it. For a moment each
# data-parallel rank has all of it. Megatron's memory-efficient variant collects it over gloo on the first one alone,
# which then writes alone.
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}


def load(directory: Path, model: list[Any], optimizer: Any | None, text_alone: bool = False) -> None:
    """Loads weights, and the optimizer's state where there is an optimizer, under any layout.

    The LoRA of a checkpoint goes into the model's, where the stage that trains it is continued, and else is added to
    the weights.

    Args:
        directory: a sound checkpoint. Megatron's format has pickles in it: it is trusted input.
        model: this rank's chunks, wrapped.
        optimizer: new; its settings stay the current ones. None to load the weights alone.
        text_alone: leave the vision tower and the projector as they are.

    Raises:
        UserError: on every rank, if a weight or a part of the optimizer's state is not a finite number.
    """
    # The replicas of one shard of the model divide the reading. In a larger group every tensor would be sent to all.
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(directory)), replicas)
    wanted = sharded_state(model, optimizer, directory)
    if text_alone:
        wanted = {name: _without_vision(part) for name, part in wanted.items()}
    state = dist_checkpointing.load(wanted, str(directory), strategy)
    for index, chunk in enumerate(model):
        own = {name: value for name, value in unwrap(chunk).state_dict().items() if text_alone and is_vision_key(name)}
        fill(unwrap(chunk), {**own, **state[f"model{index}"]}, state.get(f"scaling{index}", {}))
    chunks = [unwrap(chunk) for chunk in model]
    if (lora := directory / LORA.directory).is_dir() and adapter_shape(chunks, LORA) is None:
        merge_saved_lora(chunks, lora, model_from_dict(saved_model(directory)))
    if optimizer is not None:
        load_optimizer(optimizer, state["optimizer"])
    if (bad := non_finite_state(model, optimizer)) is not None:
        raise UserError(
            f"{directory}: {bad} contains NaN or infinity, so the checkpoint is of no use; name an earlier one, or "
            "delete it from run.dir to continue from the one before"
        )


def _without_vision(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if not is_vision_key(name)}


def sharded_state(model: list[Any], optimizer: Any | None, source: Path | None = None) -> dict[str, Any]:
    """Every tensor of this rank with its offset in the global tensor; the names do not depend on the layout.

    Args:
        model: this rank's chunks, wrapped or not.
        optimizer: None for the weights alone.
        source: the checkpoint to load it from; None to save it.

    Returns:
        `model<n>` are the weights of a chunk, `scaling<n>` its FP8 scaling state, where it has one and the checkpoint
        too.
    """
    weights, scaling = zip(*(split_state(unwrap(chunk)) for chunk in model), strict=True)
    state: dict[str, Any] = {f"model{index}": part for index, part in enumerate(weights)}
    if optimizer is not None:
        loading = source is not None
        state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=loading, metadata=dict(SHARDING))
    for index, part in enumerate(scaling):
        if entries := part if source is None else only_stored(part, source):
            state[f"scaling{index}"] = entries
    return state
