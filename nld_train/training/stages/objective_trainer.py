"""Trains all weights on the objective `L_AR + alpha * L_diff`, with or without a noisy stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from nld_train.config.schema import Config, StageConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.masking.linear_schedule import LinearSchedule
from nld_train.masking.schedule import noise_schedule
from nld_train.model import streams
from nld_train.model.adapter_files import AdapterShape
from nld_train.model.adapters import LORA
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.forward_backward import global_counts, global_terms, run_schedule
from nld_train.training.loop.micro_batch import Samples, StreamSettings, prepare
from nld_train.training.loop.step import train_step
from nld_train.training.loop.trained_weights import train_adapter, train_all_weights
from nld_train.training.metrics.jsonl import Record
from nld_train.training.stages.kind import StageTrainer


def stream_settings(config: Config, stage: StageConfig, dtype: torch.dtype, device: torch.device) -> StreamSettings:
    """The settings that turn the samples of a stage into streams.

    Args:
        config: the run.
        stage: one of its stages.
        dtype: of activations.
        device: of this process.
    """
    return StreamSettings(
        two_streams=kind_of(stage).noisy_stream,
        mask_token_id=config.model.mask_token_id,
        averaging=stage.averaging,
        schedule=noise_schedule(config.diffusion),
        dtype=dtype,
        device=device,
    )


@dataclass(frozen=True)
class ObjectiveTrainer(StageTrainer):
    """See `StageTrainer`.

    Attributes:
        stage: its settings, for alpha.
        settings: how samples become streams.
        rotary: the rotary embedding of the model.
        clip_grad: largest norm of the gradient; 0: no clipping.
        seed: of the initial weights of a LoRA.
    """

    stage: StageConfig
    settings: StreamSettings
    rotary: RotaryEmbedding
    clip_grad: float
    seed: int

    @classmethod
    def of(
        cls, config: Config, stage: StageConfig, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
    ) -> ObjectiveTrainer:
        """The trainer of a stage of a run; arguments as of `StageKind.make_trainer`."""
        return cls(
            stage, stream_settings(config, stage, dtype, device), rotary, config.optimizer.clip_grad, config.run.seed
        )

    def prepare_model(self, model: list[Any]) -> list[Any]:
        """See `StageTrainer.prepare_model`: all weights, or a new LoRA, are trained."""
        lora = self.stage.lora
        if lora is None:
            return train_all_weights(model)
        shape = AdapterShape(lora.rank, lora.lora_alpha, lora.targets)
        return train_adapter(model, LORA, shape, self.seed)

    def step(self, model: list[Any], optimizer: Any, samples: list[Samples]) -> Record:
        """See `StageTrainer.step`."""
        result = train_step(model, optimizer, samples, self.stage, self.settings, self.rotary, self.clip_grad)
        return {
            "loss": result.loss,
            "ar_loss": result.ar_loss,
            "diffusion_loss": result.diffusion_loss,
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
        counts = global_counts(samples, self.settings.device)
        # `masked` divides by the number of masked tokens.
        unweighted = replace(self.settings, averaging="masked", schedule=_Unweighted(0.0))
        micro_batches = [prepare(batch, counts, unweighted, self.rotary) for batch in samples]
        results = run_schedule(model, micro_batches, alpha=0.0, forward_only=True)
        streams.clear()
        return global_terms(results, self.settings.device)


class _Unweighted(LinearSchedule):
    """Every masked token counts the same, whatever its masking probability."""

    def loss_weight(self, probability: Any) -> Any:
        return torch.ones_like(probability)
