"""One process of a group that trains a LoRA under several layouts (started by `run_ranks`).

    lora_worker.py CASES.json RESULTS.json

A case is `{"name", "config"}`, and `"naive": true` for the computation by hand. Rank 0 writes `{name: outcome}`.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from naive_objective import naive_losses, plain_model
from torch import Tensor
from trainee import Trainee, run_cases

from nld_train.config.low_rank import target_shapes
from nld_train.config.schema import Config, LoraConfig
from nld_train.decoding import DecodeOptions
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.engines.megatron_engine import MegatronEngine
from nld_train.losses.objective import TermWeights, denominators
from nld_train.model import streams
from nld_train.model.adapter_files import tensor_names
from nld_train.model.adapters import LORA, adapter_tensors, load_adapter, merge_lora
from nld_train.training.loop.forward_backward import global_counts, run_schedule
from nld_train.training.loop.optimizer import gather_parameters

PROMPTS = [[7, 9, 11, 13, 15], [40, 8, 21]]


def lora_of(config: Config) -> LoraConfig:
    (name,) = config.run.stages
    lora = config.stages[name].lora
    assert lora is not None
    return lora


def whole_lora(config: Config) -> dict[str, Tensor]:
    """A LoRA that has learned something: a fresh one has no gradient for A."""
    generator, lora, tensors = torch.Generator().manual_seed(3), lora_of(config), {}
    for layer in range(config.model.num_hidden_layers):
        for target, (inputs, outputs) in target_shapes(config.model).items():
            if target in lora.targets:
                down, up = tensor_names(layer, target)
                tensors[down] = 0.2 * torch.randn(lora.rank, inputs, generator=generator)
                tensors[up] = 0.2 * torch.randn(outputs, lora.rank, generator=generator)
    return tensors


class LoraTrainee(Trainee):
    """With a LoRA that has learned something."""

    def prepared(self, chunks: list[Any]) -> list[Any]:
        fresh = self._decode(chunks)
        chunks = super().prepared(chunks)
        assert self._decode(chunks) == fresh, "a new LoRA changes nothing"
        load_adapter(chunks, LORA, whole_lora(self.config))
        return chunks

    def train(self) -> dict[str, Any]:
        """Records of all steps, the LoRA they end with, and what the model says with it and with merged weights."""
        before = self.frozen()
        records = list(self.steps())
        gather_parameters(self.model)
        frozen = all(torch.equal(old, new) for old, new in zip(before, self.frozen(), strict=True))
        tensors = adapter_tensors(self.chunks, LORA)
        decoded = self._decode(self.chunks)
        merge_lora(self.chunks)
        return {
            "records": records,
            "frozen": frozen,
            "buffered": [buffer.numel for chunk in self.model for buffer in chunk.buffers],
            "lora": {name: tensor.tolist() for name, tensor in tensors.items()},
            "decoded": decoded,
            "merged": self._decode(self.chunks),
        }

    def gradients(self) -> dict[str, Any]:
        """Those of the first step, by the names of the weights; one process."""
        samples, stage = next(iter(self.batches())), self.plan.stage
        divisors = denominators(stage.averaging, global_counts(samples))
        run_schedule(self.model, samples, divisors, TermWeights(1.0, stage.alpha), self.trainer.placement)
        streams.clear()
        (chunk,) = self.chunks
        return {name: weight.main_grad.tolist() for name, weight in chunk.named_parameters() if weight.requires_grad}

    def _decode(self, chunks: list[Any]) -> dict[str, Any]:
        if self.config.parallel.context > 1:
            return {}  # decoding has no context parallelism
        found = {}
        with MegatronEngine(chunks, self.config.model, self.rotary).decoding() as engine:
            for mode in ("ar", "quadratic"):
                found[mode] = decode(engine, PROMPTS, mode, DecodeOptions(max_new_tokens=16, block_length=4)).token_ids
        return found


def by_hand(config: Config, device: torch.device) -> dict[str, Any]:
    """Losses and gradients of the first step of a model whose weights are W + lora_alpha / rank * B A."""
    model, tensors, scale = plain_model(config, device), whole_lora(config), lora_of(config).lora_alpha
    scale /= lora_of(config).rank
    for tensor in tensors.values():
        tensor.requires_grad_()
    targets, sizes = lora_of(config).targets, target_shapes(config.model)

    def change(layer: int, target: str) -> Tensor:
        if target not in targets:
            inputs, outputs = sizes[target]
            return torch.zeros(outputs, inputs)
        down, up = (tensors[name] for name in tensor_names(layer, target))
        return scale * up @ down

    for number, layer in enumerate(model.decoder.layers):
        query, key, value = (change(number, f"{letter}_proj") for letter in "qkv")
        heads, groups, size = (
            config.model.num_attention_heads,
            config.model.num_key_value_heads,
            config.model.head_dim,
        )
        rows = []
        for group in range(groups):
            for head in range(group * heads // groups, (group + 1) * heads // groups):
                rows.append(query[head * size : (head + 1) * size])
            rows.append(key[group * size : (group + 1) * size])
            rows.append(value[group * size : (group + 1) * size])
        _add(layer.self_attention.linear_qkv, torch.cat(rows))
        _add(layer.self_attention.linear_proj, change(number, "o_proj"))
        _add(layer.mlp.linear_fc1, torch.cat([change(number, "gate_proj"), change(number, "up_proj")]))
        _add(layer.mlp.linear_fc2, change(number, "down_proj"))
    losses = naive_losses(config, model)
    gradients = {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
    squares = sum(float(gradient.double().square().sum()) for gradient in gradients.values())
    return {
        **losses,
        "grad_norm": math.sqrt(squares),
        "gradients": {name: gradient.tolist() for name, gradient in gradients.items()},
    }


def _add(linear: Any, change: Tensor) -> None:
    weight = linear.weight.detach() + change
    del linear.weight
    linear.weight = weight


def outcome(config: Config, device: torch.device, naive: bool) -> dict[str, Any]:
    if naive:
        return by_hand(config, device) | {"found": LoraTrainee(config, device).gradients()}
    return LoraTrainee(config, device).train()


if __name__ == "__main__":
    run_cases(sys.argv[1], sys.argv[2], outcome)
