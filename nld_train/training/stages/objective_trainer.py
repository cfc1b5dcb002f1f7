"""Trains all weights on the objective `L_AR + alpha * L_diff`, with or without a noisy stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state

from nld_train.config.schema import Config, StageConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.data.collate import Samples, StreamBatch, StreamCollator
from nld_train.losses.objective import TermWeights, denominators
from nld_train.masking.linear_schedule import LinearSchedule
from nld_train.masking.schedule import noise_schedule
from nld_train.model import streams
from nld_train.model.adapter_files import AdapterShape
from nld_train.model.adapters import LORA
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import global_counts, global_terms, run_schedule
from nld_train.training.loop.micro_batch import Placement, placement_of
from nld_train.training.loop.step import train_step
from nld_train.training.loop.trained_weights import train_adapter, train_weights
from nld_train.training.metrics.jsonl import Record
from nld_train.training.stages.kind import StageTrainer

# For passes without gradients.
_ONLY_MEASURED = TermWeights(1.0, 0.0)


def stream_collator(config: Config, stage: StageConfig) -> StreamCollator:
    """What makes micro-batches of the samples of a stage, on this process.

    Args:
        config: the run.
        stage: one of its stages.
    """
    return StreamCollator(
        two_streams=kind_of(stage).noisy_stream,
        mask_token_id=config.model.mask_token_id,
        averaging=stage.averaging,
        schedule=noise_schedule(config.diffusion),
        sequences=config.batch.global_size,
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
        vision=config.model.vision,
    )


@dataclass(frozen=True)
class ObjectiveTrainer(StageTrainer):
    """See `StageTrainer`.

    Attributes:
        stage: its settings, for averaging and weights.
        collator: makes micro-batches of samples.
        placement: of its passes.
        clip_grad: largest norm of the gradient; 0: no clipping.
        seed: of the initial weights of a LoRA.
    """

    stage: StageConfig
    collator: StreamCollator
    placement: Placement
    clip_grad: float
    seed: int

    @classmethod
    def of(
        cls, config: Config, stage: StageConfig, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
    ) -> ObjectiveTrainer:
        """The trainer of a stage of a run; arguments as of `StageKind.make_trainer`."""
        collator, placement = stream_collator(config, stage), placement_of(config, rotary, dtype, device)
        return cls(stage, collator, placement, config.optimizer.clip_grad, config.run.seed)

    @property
    def collate(self) -> StreamCollator:
        """See `StageTrainer.collate`."""
        return self.collator

    def prepare_model(self, model: list[Any]) -> list[Any]:
        """See `StageTrainer.prepare_model`: all weights, those of `trained_weights`, or a new LoRA, are trained."""
        lora = self.stage.lora
        if lora is None:
            return train_weights(model, self.stage.trained_weights)
        shape = AdapterShape(lora.rank, lora.lora_alpha, lora.targets)
        return train_adapter(model, LORA, shape, self.seed)

    def step(self, model: list[Any], optimizer: Any, batches: list[StreamBatch]) -> Record:
        """See `StageTrainer.step`."""
        result = train_step(model, optimizer, batches, self.stage, self.placement, self.clip_grad)
        return {
            "loss": result.loss,
            "ar_loss": result.ar_loss,
            "diffusion_loss": result.diffusion_loss,
            "ar_weight": self.stage.ar_weight,
            "alpha": self.stage.alpha,
            "ar_tokens": result.counts.ar_tokens,
            "maskable_tokens": result.counts.maskable_tokens,
            "masked_tokens": result.counts.masked_tokens,
            "ar_denominator": result.denominators.ar,
            "diffusion_denominator": result.denominators.diffusion,
            "grad_norm": result.gradient_norm,
        }

    @torch.no_grad()
    def held_out_losses(self, model: list[Any], samples: list[Samples]) -> tuple[float, float]:
        """See `StageTrainer.held_out_losses`: means over the supervised and over the masked tokens, unweighted."""
        # `masked` divides by the number of masked tokens.
        unweighted = replace(self.collator, averaging="masked", schedule=_Unweighted(0.0))
        batches = [unweighted.of(each) for each in samples]
        divisors = denominators("masked", global_counts(batches))
        results = run_schedule(model, batches, divisors, _ONLY_MEASURED, self.placement, forward_only=True)
        streams.clear()
        ar, diffusion = global_terms(results, self.placement.device).tolist()
        return ar, diffusion


class _Unweighted(LinearSchedule):
    """Every masked token counts the same, whatever its masking probability."""

    def loss_weight(self, probability: Any) -> Any:
        return torch.ones_like(probability)
