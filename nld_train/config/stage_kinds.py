"""The registry of stage kinds: the values of `stages.NAME.kind`.

A kind is an object that defines everything in which stages differ (`training.stages.kind.StageKind`). It is beside the
code that trains it and imported when it is used; its module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nld_train.config.schema import Config, StageConfig
from nld_train.errors import UserError
from nld_train.registry import resolve

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind

# Where each kind's object is, as module:name. A new kind is a new file and an entry here.
STAGE_KINDS: dict[str, str] = {
    "ar": "nld_train.training.stages.ar:AR",
    "joint": "nld_train.training.stages.joint:JOINT",
    "sft": "nld_train.training.stages.sft:SFT",
    "drafter": "nld_train.training.stages.drafter:DRAFTER",
}


def stage_kind(name: str, key: str = "kind") -> StageKind:
    """The object of a stage kind.

    Args:
        name: the value of `stages.NAME.kind`.
        key: the whole key, for the message.

    Raises:
        UserError: there is no such kind.
    """
    if name not in STAGE_KINDS:
        raise UserError(f"{key}={name}: must be one of {', '.join(STAGE_KINDS)}")
    kind: StageKind = resolve(STAGE_KINDS[name])
    return kind


def kind_of(stage: StageConfig, key: str = "kind") -> StageKind:
    """The kind of a stage, with those of its settings that its lengths depend on; arguments as of `stage_kind`."""
    return stage_kind(stage.kind, key).for_stage(stage)


def running_kinds(config: Config) -> dict[str, StageKind]:
    """The kind of each stage that runs, by the stage's name, in the order of the run."""
    return {name: kind_of(config.stages[name], f"stages.{name}.kind") for name in config.run.stages}


def longest_kind(config: Config) -> StageKind:
    """The kind with the longest streams among those that run (the first of several): it needs the most memory."""
    length = config.batch.sequence_length
    return max(running_kinds(config).values(), key=lambda kind: max(kind.stream_lengths(length)))
