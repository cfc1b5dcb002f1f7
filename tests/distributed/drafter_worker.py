"""One process of a group that takes drafter steps under several layouts (started by `run_ranks`).

    drafter_worker.py CASES.json RESULTS.json

A case is `{"name", "config"}`, and `"naive": true` for the computation by hand. Rank 0 writes `{name: outcome}`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from decoding_readings import Counting, readings
from megatron.core import parallel_state
from naive_drafter import NaiveDrafter
from torch import Tensor

from nld_train.config.load import config_from_dict
from nld_train.config.plan import stage_plans
from nld_train.config.schema import Config
from nld_train.config.validate import validate
from nld_train.data.batches import batches
from nld_train.data.order import stage_orders
from nld_train.data.samples import training_samples
from nld_train.decoding import DecodeOptions
from nld_train.decoding.algorithms.decode import decode
from nld_train.model.adapter_files import tensor_names
from nld_train.model.adapters import DRAFTER, adapter_tensors, load_adapter
from nld_train.model.build import build_model, resolve_dtype, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.rotary import RotaryEmbedding
from nld_train.processes import world_size
from nld_train.training.loop.optimizer import build_optimizer, build_scheduler, unwrap, wrap_model
from nld_train.training.loop.packing import pack_conversations
from nld_train.training.loop.parallel import parallel_groups

PROMPTS = [[7, 9, 11, 13, 15], [40, 8, 21]]


def whole_adapter(config: Config) -> dict[str, Tensor]:
    """An adapter that has learned something: a fresh one has no gradient for A, and drafts like none at all."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    model, adapter = config.model, config.stages["drafter"].adapter
    assert adapter is not None
    for layer in range(model.num_hidden_layers):
        down, up = tensor_names(layer)
        width = model.num_attention_heads * model.head_dim
        tensors[down] = 0.3 * torch.randn(adapter.rank, width, generator=generator)
        tensors[up] = 0.3 * torch.randn(model.hidden_size, adapter.rank, generator=generator)
    return tensors


class Trainee:
    """This process's part of a case, prepared as a run prepares it."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        (self.plan,) = stage_plans(config)
        self.rotary = RotaryEmbedding(config.model, device)
        self.dtype = resolve_dtype(config, device)
        megatron = transformer_config(config, device)
        chunks = build_model(config, megatron, device)
        initialize(chunks, config.model, config.run.seed)
        self.trainer = self.plan.kind.make_trainer(config, self.plan, self.rotary, self.dtype, device)
        self.model = wrap_model(config, megatron, self.trainer.prepare_model(chunks))
        load_adapter(self.chunks, DRAFTER, whole_adapter(config))

    @property
    def chunks(self) -> list[Any]:
        return [unwrap(chunk) for chunk in self.model]

    def frozen(self) -> list[Tensor]:
        return [p.clone() for chunk in self.chunks for p in chunk.parameters() if not p.requires_grad]

    def train(self) -> dict[str, Any]:
        """Records of all steps, the adapter they end with, and what it then drafts."""
        before = self.frozen()
        stage = self.config.stages[self.plan.name]
        optimizer = build_optimizer(self.config, stage, self.model, self.dtype)
        scheduler = build_scheduler(stage.schedule, optimizer, self.plan.steps, self.config.optimizer.weight_decay)
        records = []
        for samples in self._batches():
            scheduler.step(1)
            records.append(self.trainer.step(self.model, optimizer, samples))
        kept = all(torch.equal(old, new) for old, new in zip(before, self.frozen(), strict=True))
        tensors = adapter_tensors(self.chunks, DRAFTER)
        return {
            "records": records,
            "frozen": kept,
            "adapter": {name: tensor.tolist() for name, tensor in tensors.items()},
            **self._decode(),
        }

    def _batches(self) -> Any:
        return batches(
            training_samples(self.config, self.plan.name, stage_orders(self.config, [self.plan])[self.plan.name]),
            first_step=0,
            last_step=self.plan.steps,
            global_size=self.config.batch.global_size,
            micro_size=self.config.batch.micro_size,
            rank=parallel_state.get_data_parallel_rank(),
            size=parallel_state.get_data_parallel_world_size(),
        )

    def _decode(self) -> dict[str, Any]:
        """Every mode; drafts with the adapter it begins with, the same under every layout to the last bit."""
        load_adapter(self.chunks, DRAFTER, whole_adapter(self.config))
        found = {}
        with Counting(self.chunks, self.config.model, self.rotary).decoding() as engine:
            for name, mode, adapter in (("ar", "ar", False), ("plain", "linear", False), ("adapter", "linear", True)):
                options = DecodeOptions(max_new_tokens=16, block_length=4, adapter=adapter)
                result = decode(engine, PROMPTS, mode, options)
                found[name] = {"token_ids": result.token_ids, "accepted": result.accepted, "forwards": result.forwards}
            return {"drafted": found, "readings": readings(engine)}


def by_hand(config: Config, device: torch.device) -> dict[str, Any]:
    """The first step's measures and the norm of its gradient."""
    trainee = Trainee(config, device)
    (chunk,) = trainee.chunks
    measures = NaiveDrafter(config, chunk).step()
    # Where the wrapper of data parallelism collects them.
    gradients = [parameter.main_grad for parameter in chunk.parameters() if parameter.requires_grad]
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    return {**measures, "grad_norm": norm}


def main(cases_path: str, results_path: str) -> None:
    results = {}
    for case in json.loads(Path(cases_path).read_text()):
        config = config_from_dict(case["config"])
        validate(config, world_size())
        with parallel_groups(config) as device:
            pack_conversations(config)
            outcome = by_hand(config, device) if case.get("naive") else Trainee(config, device).train()
            results[case["name"]] = outcome
            if dist.get_rank() == 0:
                Path(results_path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
