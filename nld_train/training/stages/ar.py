"""The stage kind `ar`: next-token prediction over the clean stream alone (paper, stage 1)."""

from __future__ import annotations

from nld_train.config.checks import refuse_unless
from nld_train.config.counts import causal_visible_pairs
from nld_train.config.schema import Config, DiffusionConfig, StageConfig
from nld_train.training.stages.objective_kind import ObjectiveKind


class ARKind(ObjectiveKind):
    """See `StageKind`."""

    name = "ar"

    def check_stage(self, key: str, stage: StageConfig) -> None:
        """See `StageKind.check_stage`: there is no diffusion loss to weight."""
        super().check_stage(key, stage)
        refuse_unless(stage.alpha == 0, f"{key}.alpha", stage.alpha, "must be 0 with kind=ar; set kind=joint")
        valid = "must be 1 with kind=ar, whose loss it is; set kind=joint"
        refuse_unless(stage.ar_weight == 1, f"{key}.ar_weight", stage.ar_weight, valid)

    def stream_lengths(self, length: int) -> tuple[int, ...]:
        """See `StageKind.stream_lengths`."""
        return (length,)

    def visible_pairs(self, length: int, diffusion: DiffusionConfig) -> int:
        """See `StageKind.visible_pairs`."""
        del diffusion
        return causal_visible_pairs(length)

    def head_rows(self, length: int, diffusion: DiffusionConfig) -> float:
        """See `StageKind.head_rows`: each position's next token."""
        del diffusion
        return float(length)

    def validation_levels(self, config: Config) -> tuple[float | None, ...]:
        """See `StageKind.validation_levels`."""
        del config
        return (None,)


AR = ARKind()
