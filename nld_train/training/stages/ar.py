"""The stage kind `ar`: next-token prediction over the clean stream alone (paper, stage 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nld_train.config.checks import refuse_unless
from nld_train.config.counts import causal_visible_pairs
from nld_train.config.schema import Config, DiffusionConfig, StageConfig
from nld_train.training.stages.kind import StageKind, StageTrainer

if TYPE_CHECKING:
    import torch

    from nld_train.config.plan import StagePlan
    from nld_train.model.rotary import RotaryEmbedding


class ARKind(StageKind):
    """See `StageKind`."""

    name = "ar"
    planned = True

    def check_stage(self, key: str, stage: StageConfig) -> None:
        """See `StageKind.check_stage`: there is no diffusion loss to weight."""
        super().check_stage(key, stage)
        refuse_unless(stage.alpha == 0, f"{key}.alpha", stage.alpha, "must be 0 with kind=ar; set kind=joint")

    def stream_lengths(self, length: int) -> tuple[int, ...]:
        """See `StageKind.stream_lengths`."""
        return (length,)

    def visible_pairs(self, length: int, block_size: int) -> int:
        """See `StageKind.visible_pairs`."""
        del block_size
        return causal_visible_pairs(length)

    def head_rows(self, length: int, diffusion: DiffusionConfig) -> float:
        """See `StageKind.head_rows`: each position's next token."""
        del diffusion
        return float(length)

    def validation_levels(self, config: Config) -> tuple[float | None, ...]:
        """See `StageKind.validation_levels`."""
        del config
        return (None,)

    def make_trainer(
        self, config: Config, plan: StagePlan, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
    ) -> StageTrainer:
        """See `StageKind.make_trainer`."""
        from nld_train.training.stages.objective_trainer import ObjectiveTrainer

        return ObjectiveTrainer.of(config, plan.stage, rotary, dtype, device)


AR = ARKind()
