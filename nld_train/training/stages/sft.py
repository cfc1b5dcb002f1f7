"""The stage kind `sft`: fine-tuning on conversations, with the joint loss on their answers (paper, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

from nld_train.config.checks import refuse_unless
from nld_train.config.counts import answer_visible_pairs, causal_visible_pairs
from nld_train.config.schema import Config, DiffusionConfig, StageConfig
from nld_train.masking.schedule import noise_schedule
from nld_train.training.stages.joint import check_clean, check_levels, evaluated_modes
from nld_train.training.stages.kind import AnswerBlocks, EvaluatedVariant, StageKind
from nld_train.training.stages.objective_kind import ObjectiveKind


@dataclass(frozen=True)
class SftKind(ObjectiveKind):
    """See `StageKind`. Prompts are visible, in the clean stream, and in no loss.

    Attributes:
        joint: whether there is a diffusion loss; without it (alpha = 0) there is no noisy stream.
        ar: whether the AR loss is trained; with `ar_weight` 0 it is only measured.
        capacity: tokens of the noisy stream; None where it is not known yet, which counts as those of the clean one.
    """

    joint: bool = True
    ar: bool = True
    capacity: int | None = None

    name = "sft"
    data = "conversations"
    sets_noisy_length = True

    def for_stage(self, stage: StageConfig) -> StageKind:
        """See `StageKind.for_stage`."""
        capacity = None if stage.noisy_length == "auto" else stage.noisy_length
        return SftKind(stage.alpha > 0, stage.ar_weight > 0, capacity)

    def check_stage(self, key: str, stage: StageConfig) -> None:
        """See `StageKind.check_stage`: one of the terms is trained."""
        super().check_stage(key, stage)
        valid = "must be above 0 where alpha is 0: nothing would be trained"
        refuse_unless(stage.ar_weight > 0 or stage.alpha > 0, f"{key}.ar_weight", stage.ar_weight, valid)

    def noisy_length(self, length: int) -> int:
        """See `StageKind.noisy_length`: the blocks of the answers, up to the capacity."""
        if not self.joint:
            return 0
        return length if self.capacity is None else self.capacity

    def answer_blocks(self, config: Config, stage: StageConfig) -> AnswerBlocks | None:
        """See `StageKind.answer_blocks`."""
        del stage
        diffusion = config.diffusion
        return AnswerBlocks(diffusion.block_size, diffusion.blocks, diffusion.fill) if self.joint else None

    def check_run(self, config: Config, name: str) -> None:
        """See `StageKind.check_run`."""
        valid = f"must be isolate: conversations of sft stage {name!r} do not see each other"
        refuse_unless(config.data.documents == "isolate", "data.documents", config.data.documents, valid)
        if self.joint:
            check_levels(config)
            check_clean(config, name)

    def stream_lengths(self, length: int) -> tuple[int, ...]:
        """See `StageKind.stream_lengths`: the noisy and the clean stream."""
        return (self.noisy_length(length) + length,)

    def visible_pairs(self, length: int, diffusion: DiffusionConfig) -> int:
        """See `StageKind.visible_pairs`: an estimate, since it depends on where the answers are."""
        if not self.joint:
            return causal_visible_pairs(length)
        return answer_visible_pairs(length, self.noisy_length(length), diffusion.block_size, diffusion.clean)

    def head_rows(self, length: int, diffusion: DiffusionConfig) -> float:
        """See `StageKind.head_rows`: an estimate; the noisy stream has about as many tokens as there are AR rows."""
        noisy = self.noisy_length(length)
        return self.ar * min(length, noisy or length) + noisy * noise_schedule(diffusion).mean_probability

    def validation_levels(self, config: Config) -> tuple[float | None, ...]:
        """See `StageKind.validation_levels`."""
        return config.validation.levels if self.joint else (None,)

    def decode_variants(self, config: Config, stage: StageConfig) -> tuple[EvaluatedVariant, ...]:
        """See `StageKind.decode_variants`: the modes of `evaluation.modes`, AR alone where diffusion is not trained."""
        del stage
        variants = evaluated_modes(config)
        return variants if self.joint else tuple(each for each in variants if each.mode == "ar")


SFT = SftKind()
