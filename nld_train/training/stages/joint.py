"""The stage kind `joint`: the AR loss and the weighted diffusion loss of two streams (paper, stage 2)."""

from __future__ import annotations

from dataclasses import dataclass

from nld_train.config.checks import refuse_unless
from nld_train.config.counts import joint_visible_pairs
from nld_train.config.schema import Config, DiffusionConfig, StageConfig
from nld_train.masking.schedule import noise_schedule
from nld_train.training.stages.kind import EvaluatedVariant, StageKind
from nld_train.training.stages.objective_kind import ObjectiveKind


@dataclass(frozen=True)
class JointKind(ObjectiveKind):
    """See `StageKind`.

    Attributes:
        ar: whether the AR loss is trained; with `ar_weight` 0 it is only measured.
    """

    ar: bool = True

    name = "joint"

    def for_stage(self, stage: StageConfig) -> StageKind:
        """See `StageKind.for_stage`."""
        return JointKind(stage.ar_weight > 0)

    def check_stage(self, key: str, stage: StageConfig) -> None:
        """See `StageKind.check_stage`: with a weight of 0 the noisy stream would be computed and not trained."""
        super().check_stage(key, stage)
        refuse_unless(stage.alpha > 0, f"{key}.alpha", stage.alpha, "must be above 0 with kind=joint; set kind=ar")

    def check_run(self, config: Config, name: str) -> None:
        """See `StageKind.check_run`: the diffusion loss is validated at given noise levels."""
        check_levels(config)
        check_clean(config, name)

    def noisy_length(self, length: int) -> int:
        """See `StageKind.noisy_length`: the noisy stream repeats the clean one."""
        return length

    def stream_lengths(self, length: int) -> tuple[int, ...]:
        """See `StageKind.stream_lengths`: the noisy and the clean stream."""
        return (2 * length,)

    def visible_pairs(self, length: int, diffusion: DiffusionConfig) -> int:
        """See `StageKind.visible_pairs`."""
        return joint_visible_pairs(length, diffusion.block_size, diffusion.clean)

    def head_rows(self, length: int, diffusion: DiffusionConfig) -> float:
        """See `StageKind.head_rows`: each position's next token and each masked position's own."""
        return length * (self.ar + noise_schedule(diffusion).mean_probability)

    def validation_levels(self, config: Config) -> tuple[float | None, ...]:
        """See `StageKind.validation_levels`."""
        return config.validation.levels

    def decode_variants(self, config: Config, stage: StageConfig) -> tuple[EvaluatedVariant, ...]:
        """See `StageKind.decode_variants`: the modes of `evaluation.modes`."""
        del stage
        return evaluated_modes(config)


def check_levels(config: Config) -> None:
    """Refuses a run that validates a diffusion loss at no noise level."""
    levels = list(config.validation.levels)
    measured = config.validation.every == 0 or len(levels) > 0
    refuse_unless(measured, "validation.levels", levels, "must name at least one level for a joint stage")


def check_clean(config: Config, name: str) -> None:
    """Refuses what clean tokens that see their whole block do not go with: an AR loss, and decoding by AR predictions.

    Args:
        config: the run.
        name: of a stage with a noisy stream.
    """
    if config.diffusion.clean == "causal":
        return
    key, weight = f"stages.{name}.ar_weight", config.stages[name].ar_weight
    valid = "must be 0 with diffusion.clean=block, where clean tokens see the labels of their AR rows"
    refuse_unless(weight == 0, key, weight, valid)
    modes = config.evaluation.modes
    decodes = config.evaluation.every == 0 or modes == ("diffusion",)
    valid = "must be [diffusion] with diffusion.clean=block: such a model has no AR predictions"
    refuse_unless(decodes, "evaluation.modes", f"[{','.join(modes)}]", valid)


def evaluated_modes(config: Config) -> tuple[EvaluatedVariant, ...]:
    """The variants of `evaluation.modes`, AR first."""
    modes = sorted(config.evaluation.modes, key=lambda mode: mode != "ar")
    return tuple(EvaluatedVariant(mode, mode, config.evaluation.block_length) for mode in modes)


JOINT = JointKind()
