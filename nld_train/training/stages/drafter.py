"""The stage kind `drafter`: trains the drafter adapter of linear self-speculation and leaves the model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.config.checks import refuse_unless
from nld_train.config.counts import answer_visible_pairs, causal_visible_pairs, forward_flops, joint_visible_pairs
from nld_train.config.schema import AdapterConfig, Config, DiffusionConfig, ModelConfig, StageConfig
from nld_train.training.stages.kind import AnswerBlocks, EvaluatedVariant, StageKind, StageTrainer

if TYPE_CHECKING:
    import torch

    from nld_train.config.plan import StagePlan
    from nld_train.model.rotary import RotaryEmbedding


@dataclass(frozen=True)
class DrafterKind(StageKind):
    """See `StageKind`. Held-out losses are not measured: the weights that they depend on do not change.

    Attributes:
        capacity: tokens of the drafts of a sample; None for those of the clean stream.
    """

    capacity: int | None = None

    name = "drafter"
    data = "any"
    trains_adapter = True
    sets_noisy_length = True

    def for_stage(self, stage: StageConfig) -> StageKind:
        """See `StageKind.for_stage`."""
        return DrafterKind(None if stage.noisy_length == "auto" else stage.noisy_length)

    def answer_blocks(self, config: Config, stage: StageConfig) -> AnswerBlocks:
        """See `StageKind.answer_blocks`: as in decoding."""
        del config
        return AnswerBlocks(_adapter(stage).block_size, "answer", True)

    def check_stage(self, key: str, stage: StageConfig) -> None:
        """See `StageKind.check_stage`."""
        adapter = stage.adapter
        if adapter is None:
            valid = "must be given with kind=drafter, as in configs/stages/drafter.yaml"
            refuse_unless(False, f"{key}.adapter", None, valid)
            return
        valid = "must be 0: a drafter adapter has a loss of its own"
        refuse_unless(stage.alpha == 0, f"{key}.alpha", stage.alpha, valid)
        refuse_unless(stage.ar_weight == 1, f"{key}.ar_weight", stage.ar_weight, "must be 1 with kind=drafter")
        valid = "must be global: every block of a step counts the same in the loss of a drafter adapter"
        refuse_unless(stage.averaging == "global", f"{key}.averaging", stage.averaging, valid)
        shown = None if stage.lora is None else f"{{rank: {stage.lora.rank}, ...}}"
        valid = "must be null with kind=drafter, whose adapter is all that it trains"
        refuse_unless(stage.lora is None, f"{key}.lora", shown, valid)

    def check_run(self, config: Config, name: str) -> None:
        """See `StageKind.check_run`."""
        listed = f"[{','.join(config.run.stages)}]"
        valid = f"must name {name!r} last: its adapter belongs to the weights that the stages before it leave"
        refuse_unless(name == config.run.stages[-1], "run.stages", listed, valid)
        valid = f"must be causal: stage {name!r} trains drafts of AR predictions"
        refuse_unless(config.diffusion.clean == "causal", "diffusion.clean", config.diffusion.clean, valid)
        context = config.parallel.context
        valid = f"stage {name!r} trains an adapter, which does not support context parallelism; set 1"
        refuse_unless(context == 1, "parallel.context", context, valid)
        valid = f"has buffers of one length; stage {name!r} trains an adapter with passes of other lengths; set false"
        refuse_unless(not config.parallel.overlap_tensor, "parallel.overlap_tensor", True, valid)

    def stream_lengths(self, length: int) -> tuple[int, ...]:
        """See `StageKind.stream_lengths`: the AR pass, and the passes over drafts and the clean stream."""
        return (length, self._drafts(length) + length)

    def visible_pairs(self, length: int, diffusion: DiffusionConfig) -> int:
        """See `StageKind.visible_pairs`: of a pass over drafts and the clean stream."""
        return self._pairs(length, diffusion.block_size)

    def _pairs(self, length: int, block_size: int) -> int:
        if self.capacity is None:
            return joint_visible_pairs(length, block_size)
        return answer_visible_pairs(length, self.capacity, block_size)

    def head_rows(self, length: int, diffusion: DiffusionConfig) -> float:
        """See `StageKind.head_rows`: each draft is read when it is made and when it is verified."""
        del diffusion
        return 2.0 * self._drafts(length)

    def sample_flops(self, config: Config, stage: StageConfig) -> float:
        """See `StageKind.sample_flops`."""
        length, block_size = config.batch.sequence_length, _adapter(stage).block_size
        drafts, pairs = self._drafts(length), self._pairs(length, block_size)
        return drafter_flops(config.model, length, drafts, pairs, block_size)

    def _drafts(self, length: int) -> int:
        return length if self.capacity is None else self.capacity

    def objective(self, stage: StageConfig) -> str:
        """See `StageKind.objective`."""
        return f"(drafter adapter of rank {_adapter(stage).rank})"

    def decode_variants(self, config: Config, stage: StageConfig) -> tuple[EvaluatedVariant, ...]:
        """See `StageKind.decode_variants`: linear self-speculation without and with the adapter, in its own blocks."""
        del config
        block_length = _adapter(stage).block_size
        return (
            EvaluatedVariant("ar", "ar", block_length),
            EvaluatedVariant("linear", "linear", block_length),
            EvaluatedVariant("linear + adapter", "linear", block_length, adapter=True),
        )

    def make_trainer(
        self, config: Config, plan: StagePlan, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
    ) -> StageTrainer:
        """See `StageKind.make_trainer`."""
        from nld_train.training.stages.drafter_trainer import DrafterTrainer

        return DrafterTrainer.of(config, plan.name, _adapter(plan.stage), self.capacity, rotary, dtype, device)


def drafter_flops(model: ModelConfig, length: int, drafts: int, pairs: int, block_size: int) -> float:
    """Floating-point operations over one sample (`docs/method.md`, "Drafter adapter").

    Three forward passes without gradients (AR over L positions; draft and verification over two streams), then the
    draft pass again with its backward pass, which is one more product each: frozen weights have no gradient. The head
    counts a row per block or position read; the adapter itself and the few rows of the loss do not count.

    Args:
        model: its shapes.
        length: L, tokens of the clean stream.
        drafts: N, tokens of the drafts.
        pairs: of query and key, that are visible in a pass over both streams.
        block_size: B.
    """
    passes_of_two_streams = 2 + 2
    positions = length + passes_of_two_streams * (drafts + length)
    # Attention has two operands that carry gradients, so that its backward pass costs two forward passes.
    every_pair = causal_visible_pairs(length) + (passes_of_two_streams + 1) * pairs
    return forward_flops(model, positions, every_pair, 2 * drafts + drafts / block_size)


def _adapter(stage: StageConfig) -> AdapterConfig:
    assert stage.adapter is not None, "`check_stage` refuses a drafter stage without an adapter"
    return stage.adapter


DRAFTER = DrafterKind()
