"""What the stage kinds share that train the model, or a LoRA in it, on `L_AR + alpha * L_diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nld_train.training.stages.kind import StageKind, StageTrainer

if TYPE_CHECKING:
    import torch

    from nld_train.config.plan import StagePlan
    from nld_train.config.schema import Config
    from nld_train.model.rotary import RotaryEmbedding


class ObjectiveKind(StageKind):
    """See `StageKind`."""

    planned = True

    def make_trainer(
        self, config: Config, plan: StagePlan, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
    ) -> StageTrainer:
        """See `StageKind.make_trainer`."""
        from nld_train.training.stages.objective_trainer import ObjectiveTrainer

        return ObjectiveTrainer.of(config, plan.stage, rotary, dtype, device)
