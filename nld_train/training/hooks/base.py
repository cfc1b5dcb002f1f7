"""What may look at the model between two steps of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from nld_train.config.plan import StagePlan
from nld_train.config.schema import Config
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.metrics.jsonl import Record


class Hook(Protocol):
    """Looks at the model at intervals of its own, on every rank, and changes nothing in training.

    Attributes:
        name: the key of what it found, in the record of the step.
    """

    name: str

    def due(self, plan: StagePlan, stage_step: int) -> bool:
        """Whether its turn has come after so many steps of a stage; the same answer on every rank."""

    def run(self, model: list[Any], plan: StagePlan) -> Record:
        """What it found in a stage; `model` are this rank's chunks, wrapped."""


# A run gives its hooks the settings and the rotary embedding, which knows the device.
MakeHook = Callable[[Config, RotaryEmbedding], Hook]
