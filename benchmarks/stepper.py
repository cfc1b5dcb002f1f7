"""A model and its optimizer, ready to make the steps that a benchmark times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nld_train.config.plan import stage_plans
from nld_train.config.schema import Config
from nld_train.data.order import stage_orders
from nld_train.data.samples import batches, training_samples
from nld_train.model.build import build_model, resolve_dtype, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.micro_batch import Samples, StreamSettings
from nld_train.training.optimizer import build_optimizer, wrap_model
from nld_train.training.step import train_step


class Stepper:
    """Makes AR and joint steps on the same tokens with the same weights and optimizer.

    Args:
        config: the run; its stages must be called `ar` and `joint`.
        device: of this process.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        megatron = transformer_config(config, device)
        chunks = build_model(config, megatron, device)
        initialize(chunks, config.model, config.run.seed)
        self.parameters = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
        self.model = wrap_model(config, megatron, chunks)
        self.dtype = resolve_dtype(config, device)
        self.optimizer: Any = build_optimizer(config, config.stages["joint"], self.model, self.dtype)
        self.rotary = RotaryEmbedding(config.model, device)
        self.samples: dict[str, list[Samples]] = {}

    def prepare(self, stage: str) -> list[Samples]:
        """Reads the micro-batches of a stage's step: those at the first places of the data, for either stage."""
        config = self.config
        order = stage_orders(config, stage_plans(config))[config.run.stages[0]]
        step = batches(
            training_samples(config, stage, order),
            first_step=0,
            last_step=1,
            global_size=config.batch.global_size,
            micro_size=config.batch.micro_size,
        )
        self.samples[stage] = next(iter(step))
        return self.samples[stage]

    def step(self, stage: str) -> None:
        """One optimizer step, to its end on the device."""
        settings = StreamSettings(
            two_streams=self.config.stages[stage].alpha > 0,
            block_size=self.config.diffusion.block_size,
            mask_token_id=self.config.model.mask_token_id,
            averaging=self.config.stages[stage].averaging,
            dtype=self.dtype,
            device=self.device,
        )
        clip = self.config.optimizer.clip_grad
        samples, stage_config = self.samples[stage], self.config.stages[stage]
        train_step(self.model, self.optimizer, samples, stage_config, settings, self.rotary, clip)
        torch.cuda.synchronize()

    def reset_peak_memory(self) -> None:
        """Starts a new measurement of the peak: of the device, or of this process's resident memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak_memory(self) -> int:
        """Bytes, since the last reset."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
