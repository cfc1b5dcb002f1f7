"""What the workers of parity tests share: a process's part of a model in training, and the loop over cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nld_train.config.load import config_from_dict
from nld_train.config.plan import stage_plans
from nld_train.config.schema import Config
from nld_train.config.validate import validate
from nld_train.data.batches import batches
from nld_train.data.order import stage_orders
from nld_train.data.samples import training_samples
from nld_train.model.build import build_model, resolve_dtype, transformer_config
from nld_train.model.initialize import initialize
from nld_train.model.rotary import RotaryEmbedding
from nld_train.processes import world_size
from nld_train.training.loop.optimizer import build_optimizer, build_scheduler, unwrap, wrap_model
from nld_train.training.loop.packing import pack_conversations
from nld_train.training.loop.parallel import parallel_groups

Record = dict[str, Any]


class Trainee:
    """This process's part of a case of one stage, prepared as a run prepares it.

    Args:
        config: the case.
        device: of this process.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        (self.plan,) = stage_plans(config)
        self.stage = config.stages[self.plan.name]
        self.rotary = RotaryEmbedding(config.model, device)
        self.dtype = resolve_dtype(config, device)
        self.trainer: Any = self.plan.kind.make_trainer(config, self.plan, self.rotary, self.dtype, device)
        self.megatron = transformer_config(config, device)
        chunks = build_model(config, self.megatron, device)
        initialize(chunks, config.model, config.run.seed)
        self.model = wrap_model(config, self.megatron, self.prepared(chunks))

    def prepared(self, chunks: list[Any]) -> list[Any]:
        """The chunks with their starting weights as the stage trains them."""
        return self.trainer.prepare_model(chunks)

    @property
    def chunks(self) -> list[Any]:
        return [unwrap(chunk) for chunk in self.model]

    def frozen(self) -> list[Tensor]:
        """Copies of the weights that are not trained."""
        return [p.clone() for chunk in self.chunks for p in chunk.parameters() if not p.requires_grad]

    def steps(self) -> Iterator[Record]:
        """Takes all steps of the stage; the record of each."""
        optimizer = build_optimizer(self.config, self.stage, self.model, self.dtype)
        weight_decay = self.config.optimizer.weight_decay
        scheduler = build_scheduler(self.stage.schedule, optimizer, self.plan.steps, weight_decay)
        for samples in self.batches():
            scheduler.step(1)
            yield self.step(optimizer, samples)

    def step(self, optimizer: Any, samples: Any) -> Record:
        return self.trainer.step(self.model, optimizer, samples)

    def samples(self) -> Any:
        """The samples of the stage."""
        return training_samples(self.config, self.plan.name, stage_orders(self.config, [self.plan])[self.plan.name])

    def batches(self) -> Any:
        """This process's samples of every step, in micro-batches."""
        return batches(
            self.samples(),
            first_step=0,
            last_step=self.plan.steps,
            global_size=self.config.batch.global_size,
            micro_size=self.config.batch.micro_size,
            rank=parallel_state.get_data_parallel_rank(),
            size=parallel_state.get_data_parallel_world_size(),
            collate=self.trainer.collate,
        )


def run_cases(cases_path: str, results_path: str, outcome: Callable[[Config, torch.device, bool], Record]) -> None:
    """Runs cases `{"name", "config"}`, each in groups of its own; rank 0 writes `{name: outcome}`.

    Args:
        cases_path: JSON, a list of cases.
        results_path: file to write.
        outcome: of a case, on this process; the last argument says whether it is the computation by hand, a case with
            `"naive": true`.
    """
    results = {}
    for case in json.loads(Path(cases_path).read_text()):
        config = config_from_dict(case["config"])
        validate(config, world_size())
        with parallel_groups(config) as device:
            pack_conversations(config)
            results[case["name"]] = outcome(config, device, case.get("naive", False))
            if dist.get_rank() == 0:
                Path(results_path).write_text(json.dumps(results))
