"""Whether weights and optimizer state are finite numbers on every rank: no other state may be saved or trained on.

An update can make NaN or infinity of finite gradients, and the loss shows that one step later, if a row of the
embedding is not used in that step even later. A checkpoint of such weights must not replace a sound one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nld_train.collectives import all_reduce
from nld_train.model.finite import first_non_finite
from nld_train.training.loop.optimizer import optimizer_parts, unwrap
from nld_train.training.loop.update import NonFiniteUpdateError

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


def non_finite_state(model: list[Any], optimizer: Any | None = None) -> str | None:
    """The first weight or optimizer state with a NaN or an infinity; the same name on every rank, or None.

    Each rank reads its own shards once; one all-reduce, and a second collective only to name what was found. Called by
    all ranks together.

    Args:
        model: this rank's chunks, wrapped or not.
        optimizer: Megatron's, or None for the weights alone.
    """
    own = first_non_finite([*_weights(model), *_states(optimizer)])
    device = next(unwrap(model[0]).parameters()).device
    found = torch.tensor(int(own is not None), device=device)
    all_reduce(found, op=dist.ReduceOp.MAX)
    if not int(found):
        return None
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, own)
    return next(name for name in names if name is not None)


def refuse_non_finite_state(model: list[Any], optimizer: Any, step: int) -> None:
    """Refuses weights and optimizer state with a NaN or an infinity; called by all ranks together.

    Args:
        model: this rank's chunks, wrapped, with gathered parameters.
        optimizer: Megatron's.
        step: of the run, the last one made.

    Raises:
        NonFiniteUpdateError: on every rank.
    """
    if (bad := non_finite_state(model, optimizer)) is not None:
        raise NonFiniteUpdateError(
            f"after the update of step {step} {bad} contains NaN or infinity: these weights were not saved"
        )


def _weights(model: list[Any]) -> Iterator[tuple[str, Tensor]]:
    """The weights of this rank; layers are numbered from 0 over all pipeline ranks."""
    for chunk in map(unwrap, model):
        for name, parameter in chunk.named_parameters():
            if (found := _LAYER.match(name)) is not None:
                number = chunk.decoder.layers[int(found[1])].layer_number - 1
                name = f"decoder.layers.{number}.{name[found.end() :]}"
            yield name, parameter


def _states(optimizer: Any | None) -> Iterator[tuple[str, Tensor]]:
    """Main weights and moments of this rank's shards."""
    for part in [] if optimizer is None else optimizer_parts(optimizer):
        # Of a rank without parameters of its own it is None.
        for parameter, state in getattr(part.optimizer, "state", {}).items():
            yield "the optimizer's main weights", parameter
            for name, value in state.items():
                if isinstance(value, Tensor):
                    yield f"the optimizer's {name}", value
