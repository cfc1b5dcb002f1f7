"""Memory of one process under a layout, term by term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.config.plan import micro_batches, stage_plans
from nld_train.config.schema import Config
from nld_train.planner.activations import head_bytes, kept_bytes
from nld_train.planner.buffers import state_bytes
from nld_train.planner.trained import ALL, Trained

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind


@dataclass(frozen=True)
class Memory:
    """Peak memory of one process, in bytes.

    Attributes:
        weights: of its shard of the model.
        gradients: in float32.
        optimizer: its shard of the state.
        activations: what layers and vision tower store for the backward pass, and the layer that is being computed.
        head: head and loss; 0 where the process has no head.
        saving: for the optimizer's state while a checkpoint is saved, when there are no activations.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    saving: int

    @property
    def total(self) -> int:
        """The most that is needed at once."""
        step = self.activations + self.head
        return self.weights + self.gradients + self.optimizer + max(step, self.saving)


def rank_memory(config: Config, world_size: int, pipeline_rank: int, kind: StageKind, trained: Trained = ALL) -> Memory:
    """Memory of the processes of a pipeline rank, in a stage of one kind."""
    state = state_bytes(config, world_size, pipeline_rank, trained=trained)
    last = pipeline_rank == config.parallel.pipeline - 1
    return Memory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        activations=kept_bytes(config, kind, pipeline_rank, micro_batches(config, world_size), trained),
        head=head_bytes(config, kind) if last else 0,
        saving=state.gathered,
    )


def largest_memory(config: Config, world_size: int) -> Memory:
    """Of the process that needs the most, in the stage that needs the most; of equal pipeline ranks, the first."""
    stages = dict.fromkeys((plan.kind, Trained.of(plan.stage)) for plan in stage_plans(config))
    found = (
        rank_memory(config, world_size, rank, kind, trained)
        for rank in range(config.parallel.pipeline)
        for kind, trained in stages
    )
    return max(found, key=lambda memory: memory.total)
