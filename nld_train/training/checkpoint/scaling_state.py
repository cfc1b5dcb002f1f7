"""What layers keep beside their weights: the FP8 scaling state of Transformer Engine's.

Each of Transformer Engine's modules has an entry `_extra_state` in its state dict. It is empty in bf16 and where FP8
numbers are scaled by the tensor itself. With delayed scaling it holds the scales and the largest values of the last
steps, from which the next scales follow, so that a run resumed without them rounds otherwise for as long as that
history is. They are equal on all tensor- and data-parallel ranks, and so belong to a layer under any layout; the row of
the history that no step has reduced over ranks yet is empty between steps (`accelerator.forget_pending_amaxes`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch.distributed.checkpoint import FileSystemReader

from nld_train.model.ministral3 import Ministral3Model
from nld_train.printable import one_line

_EXTRA_STATE = "_extra_state"
# Transformer Engine pickles its scaling state, and reads a pickle only where this variable allows it.
_ALLOW_PICKLES = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"


def split_state(chunk: Ministral3Model) -> tuple[dict[str, Any], dict[str, ShardedObject]]:
    """The sharded weights of a model's chunk, and its scaling state, which is empty without delayed scaling.

    The names of the weights do not depend on the layout, nor on the kind of layers.
    """
    state = chunk.sharded_state_dict()
    weights = {name: value for name, value in state.items() if not name.endswith(_EXTRA_STATE)}
    if not _scales_by_history(chunk):
        return weights, {}
    # What Megatron's own layers, such as the head, put there is None.
    others = {name: value for name, value in state.items() if name not in weights and value.data is not None}
    return weights, others


def _scales_by_history(chunk: Ministral3Model) -> bool:
    return bool(chunk.config.fp8) and chunk.config.fp8_recipe == "delayed"


def only_stored(scaling: dict[str, ShardedObject], directory: Path) -> dict[str, ShardedObject]:
    """The entries that a checkpoint has; reports on standard error if it lacks some.

    Args:
        scaling: of this rank's model.
        directory: of the checkpoint, which layers of another kind, or without delayed scaling, may have written.
    """
    if not scaling:
        return {}
    stored = FileSystemReader(directory).read_metadata().state_dict_metadata
    found = {name: entry for name, entry in scaling.items() if entry.unique_key in stored}
    if len(found) < len(scaling) and dist.get_rank() == 0:
        line = f"{directory} has no FP8 scaling state: the scales start anew, and follow from the next steps"
        print(one_line(line), file=sys.stderr)
    return found


def fill(chunk: Ministral3Model, weights: dict[str, Any], scaling: dict[str, Any]) -> None:
    """Fills a model's chunk with loaded tensors; every weight has to be there, the scaling state may be missing."""
    with _pickles_allowed():
        missing, unexpected = chunk.load_state_dict({**weights, **scaling}, strict=False)
    absent = [name for name in missing if not name.endswith(_EXTRA_STATE)]
    assert not absent, f"loaded without weights that the model has: {absent}"
    assert not unexpected, f"loaded with weights that the model does not have: {unexpected}"


@contextmanager
def _pickles_allowed() -> Iterator[None]:
    """A checkpoint is trusted input, as all pickles in it: its index is one too."""
    before = os.environ.get(_ALLOW_PICKLES)
    os.environ[_ALLOW_PICKLES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ALLOW_PICKLES]
        else:
            os.environ[_ALLOW_PICKLES] = before
