"""A model and its optimizer for benchmarks that time optimizer steps."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from benchmarks.timing import synchronize
from nld_train.config.plan import stage_plans
from nld_train.config.schema import Config
from nld_train.data.batches import batches
from nld_train.data.collate import Samples, StreamBatch
from nld_train.data.order import stage_orders
from nld_train.data.samples import training_samples
from nld_train.model.attention import flex
from nld_train.model.build import build_model, resolve_dtype, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.kernels import kernels_in_words
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.rotary import RotaryEmbedding
from nld_train.training.loop.micro_batch import placement_of
from nld_train.training.loop.optimizer import build_optimizer, wrap_model
from nld_train.training.loop.step import train_step
from nld_train.training.loop.update import update
from nld_train.training.stages.objective_trainer import stream_collator


class Stepper:
    """Runs AR and joint steps on the same tokens with the same weights and optimizer.

    Args:
        config: the run; its stages must be called `ar` and `joint`.
        device: of this process.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        megatron = transformer_config(config, device)
        chunks = build_model(config, megatron, device)
        fill(chunks, config, device)
        self.parameters = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
        self.model = wrap_model(config, megatron, chunks)
        self.dtype = resolve_dtype(config, device)
        self.optimizer: Any = build_optimizer(config, config.stages["joint"], self.model, self.dtype)
        self.rotary = RotaryEmbedding(config.model, device)
        self.kernels = kernels_in_words(config, device)
        self.placement = placement_of(config, self.rotary, self.dtype, device)
        self.samples: dict[str, list[Samples]] = {}
        self._collated: dict[str, tuple[list[Samples], list[StreamBatch]]] = {}

    def prepare(self, stage: str) -> list[Samples]:
        """Reads the micro-batches of a stage's step: for both stages the first samples of the data."""
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

    def step(self, stage: str, update: bool = True) -> float:
        """Runs one optimizer step and synchronizes; without `update` the learning rate is 0. Returns the loss.

        All steps have the same samples, so their masks would be cached. In a run with isolated documents every
        micro-batch has other borders and makes a new mask, so the cache is cleared here.
        """
        if self.config.data.documents == "isolate":
            flex.clear_masks()
        clip = self.config.optimizer.clip_grad
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.stages["joint"].schedule.learning_rate if update else 0.0
        stage_config = self.config.stages[stage]
        result = train_step(self.model, self.optimizer, self._batches(stage), stage_config, self.placement, clip)
        synchronize(self.device)
        return result.loss

    def _batches(self, stage: str) -> list[StreamBatch]:
        """The micro-batches of a stage's samples, made once, as the processes of a run's data loader make them."""
        samples = self.samples[stage]
        if stage not in self._collated or self._collated[stage][0] is not samples:
            collator = stream_collator(self.config, self.config.stages[stage])
            made = [collator.of(each) for each in samples]
            self._collated[stage] = (
                samples,
                [each.pin_memory() if self.device.type == "cuda" else each for each in made],
            )
        return self._collated[stage][1]

    def update_seconds(self, repeats: int = 3) -> float:
        """Seconds of zeroing gradients, norm, clipping and update, measured with zero gradients."""
        seconds = []
        for _ in range(1 + repeats):
            synchronize(self.device)
            begin = time.perf_counter()
            for chunk in self.model:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
            update(self.optimizer, self.config.optimizer.clip_grad, torch.zeros(0, device=self.device), ())
            synchronize(self.device)
            seconds.append(time.perf_counter() - begin)
        return median(seconds[1:])


@torch.no_grad()
def fill(chunks: list[Ministral3Model], config: Config, device: torch.device) -> None:
    """Fills the weights, on CUDA on the device: drawing them on the CPU, as a run does, takes minutes."""
    if device.type != "cuda":
        initialize(chunks, config.model, config.run.seed)
        return
    for chunk in chunks:
        for parameter in chunk.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=config.model.initializer_range)
