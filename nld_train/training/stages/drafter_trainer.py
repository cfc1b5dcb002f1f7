"""Trains a drafter adapter and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nld_train.config.schema import AdapterConfig, Config
from nld_train.data.draft_batch import DraftBatch, DraftCollator
from nld_train.model.adapter_files import AdapterShape
from nld_train.model.adapters import DRAFTER
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.micro_batch import placement_of
from nld_train.training.loop.trained_weights import train_adapter
from nld_train.training.metrics.jsonl import Record
from nld_train.training.stages.drafter_batch import DrafterSettings
from nld_train.training.stages.drafter_step import drafter_step
from nld_train.training.stages.kind import StageTrainer


@dataclass(frozen=True)
class DrafterTrainer(StageTrainer):
    """See `StageTrainer`.

    Attributes:
        config: the run.
        adapter: settings of the adapter.
        collator: makes micro-batches of samples.
        settings: of the passes.
    """

    config: Config
    adapter: AdapterConfig
    collator: DraftCollator
    settings: DrafterSettings

    @classmethod
    def of(
        cls,
        config: Config,
        stage: str,
        adapter: AdapterConfig,
        noisy_length: int | None,
        rotary: RotaryEmbedding,
        dtype: torch.dtype,
        device: torch.device,
    ) -> DrafterTrainer:
        """The trainer of a stage of a run; other arguments as of `StageKind.make_trainer`.

        Args:
            config: the run.
            stage: name of the stage.
            adapter: its adapter.
            noisy_length: tokens of the drafts of a sample; None for those of the clean stream.
            rotary: the rotary embedding of the model.
            dtype: of activations.
            device: of this process.
        """
        settings = DrafterSettings(
            adapter=adapter,
            vocab_size=config.model.vocab_size,
            mask_token_id=config.model.mask_token_id,
            chunk_rows=config.execution.head_chunk_rows,
            placement=placement_of(config, rotary, dtype, device),
        )
        collator = DraftCollator(adapter.block_size, adapter.greedy_share, stage, config.run.seed, noisy_length)
        return cls(config, adapter, collator, settings)

    @property
    def collate(self) -> DraftCollator:
        """See `StageTrainer.collate`."""
        return self.collator

    def prepare_model(self, model: list[Any]) -> list[Any]:
        """See `StageTrainer.prepare_model`: frozen weights with a new adapter, which alone has gradients."""
        shape = AdapterShape(self.adapter.rank, self.adapter.lora_alpha)
        return train_adapter(model, DRAFTER, shape, self.config.run.seed)

    def step(self, model: list[Any], optimizer: Any, batches: list[DraftBatch]) -> Record:
        """See `StageTrainer.step`."""
        result = drafter_step(model, optimizer, batches, self.settings, self.config.optimizer.clip_grad)
        return {
            "loss": result.loss,
            "ar_loss": None,
            "diffusion_loss": None,
            "drafter": {
                "kl": result.kl,
                "tv": result.tv,
                "cross_entropy": result.cross_entropy,
                "accepted_length": result.accepted_length,
                "greedy_accepted_length": result.greedy_accepted_length,
                "blocks": result.blocks,
            },
            "grad_norm": result.gradient_norm,
        }
