"""One process of a group that trains many cases, one after another (started by `run_ranks`).

    parity_worker.py CASES.json RESULTS.jsonl

A case is `{"name", "kind", "config"}`. Rank 0 appends a line per finished case, so that a crash costs only the rest.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from naive_objective import naive_step
from trainee import Record, Trainee

from nld_train.config.load import config_from_dict
from nld_train.config.schema import Config
from nld_train.config.validate import validate
from nld_train.losses.objective import TermWeights, denominators
from nld_train.model import streams
from nld_train.model.initialize import shards
from nld_train.processes import world_size
from nld_train.training.hooks.base import RunningStage
from nld_train.training.hooks.validation import ValidationHook
from nld_train.training.loop.forward_backward import global_counts, run_schedule
from nld_train.training.loop.packing import pack_conversations
from nld_train.training.loop.parallel import parallel_groups
from nld_train.training.loop.step import train_step
from nld_train.training.loop.update import NonFiniteError


class ParityTrainee(Trainee):
    """Its records have all that a step measures."""

    def step(self, optimizer: Any, samples: Any) -> Record:
        clip = self.config.optimizer.clip_grad
        result = train_step(self.model, optimizer, samples, self.stage, self.trainer.placement, clip)
        return {**asdict(result), "grad_norm": result.gradient_norm}

    def poisoned_step(self, poison: Poison) -> Record:
        """What every process says, and whether its weights are what they were, after one process went astray."""
        if dist.get_rank() == dist.get_world_size() - 1:
            poison(next(self.model[0].parameters()))
        before = [parameter.clone() for chunk in self.model for parameter in chunk.parameters()]
        try:
            message = f"trained: {list(self.steps())}"
        except NonFiniteError as error:
            message = str(error)
        after = [parameter for chunk in self.model for parameter in chunk.parameters()]
        kept = all(_same_bits(old, new) for old, new in zip(before, after, strict=True))
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, (message, kept))
        return {"messages": [message for message, _ in told], "kept": [kept for _, kept in told]}

    def gradients(self) -> Record:
        """The first step's gradient, every weight's whole, by name; on rank 0."""
        reduce = self.megatron.finalize_model_grads_func
        # Each process then has the whole sum, where in training it has its share of it.
        self.megatron.finalize_model_grads_func = lambda *given, **named: reduce(
            *given, **{**named, "force_all_reduce": True}
        )
        samples = next(iter(self.batches()))
        divisors = denominators(self.stage.averaging, global_counts(samples))
        run_schedule(
            self.model, samples, divisors, TermWeights(self.stage.ar_weight, self.stage.alpha), self.trainer.placement
        )
        streams.clear()
        for parameter in (parameter for chunk in self.chunks for parameter in chunk.parameters()):
            parameter.data.copy_(parameter.main_grad)
        return self._whole(self.chunks)

    def _whole(self, chunks: list[Any]) -> Record:
        """The tensors of all processes put together; rows that only pad the vocabulary are left out."""
        own = [
            (f"{shard.key}/{shard.global_offset[: shard.prepend_axis_num]}", shard.prepend_axis_num, shard)
            for chunk in chunks
            for shard in shards(chunk.sharded_state_dict())
        ]
        parts = [(name, shard.global_shape[n:], shard.global_offset[n:], shard.data.tolist()) for name, n, shard in own]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, parts)
        whole: dict[str, torch.Tensor] = {}
        for name, shape, offset, values in (part for parts in gathered for part in parts):
            box = torch.tensor(values)
            places = tuple(slice(start, start + size) for start, size in zip(offset, box.shape, strict=True))
            whole.setdefault(name, torch.zeros(shape))[places] = box
        rows = self.config.model.vocab_size
        return {name: tensor[:rows].tolist() for name, tensor in whole.items()}

    def validate(self) -> Record:
        """The losses of the starting weights on held-out samples."""
        hook = ValidationHook(self.config, self.rotary)
        ar_loss, diffusion_loss = hook.losses(self.model, RunningStage(self.plan, self.trainer))
        return {"ar_loss": ar_loss, **{f"diffusion_loss at {level}": loss for level, loss in diffusion_loss.items()}}


Poison = Callable[[torch.nn.Parameter], Any]


def _poison_weight(parameter: torch.nn.Parameter) -> None:
    with torch.no_grad():
        parameter.fill_(math.nan)


def _poison_gradient(parameter: torch.nn.Parameter) -> None:
    parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.inf))


POISONS: dict[str, Poison] = {"nan weight": _poison_weight, "infinite gradient": _poison_gradient}


def _same_bits(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Also where a NaN stands, which equals nothing."""
    return torch.equal(old.view(torch.int32), new.view(torch.int32))


def run_case(config: Config, kind: str, device: torch.device) -> list[Record]:
    """The records of a few optimizer steps, or of what else the kind of the case asks for (see `parity_cases`)."""
    pack_conversations(config)
    if kind == "naive":
        return [naive_step(config, device)]
    trainee = ParityTrainee(config, device)
    if kind == "train":
        return list(trainee.steps())
    if kind == "gradients":
        return [trainee.gradients()]
    return [trainee.validate() if kind == "validation" else trainee.poisoned_step(POISONS[kind])]


def main(cases_path: str, results_path: str) -> None:
    cases = json.loads(Path(cases_path).read_text())
    with Path(results_path).open("a") as results:
        for _, alike in groupby(cases, key=lambda case: case["config"]["parallel"]):
            _run_alike(list(alike), results)


def _run_alike(cases: list[dict[str, Any]], results: Any) -> None:
    """Cases of one layout, in one set of groups."""
    with parallel_groups(config_from_dict(cases[0]["config"])) as device:
        for case in cases:
            config = config_from_dict(case["config"])
            if case["kind"] in ("train", "gradients"):  # a forward pass alone can do more on a CPU
                validate(config, world_size())
            records = run_case(config, case["kind"], device)
            if dist.get_rank() == 0:
                results.write(json.dumps({"name": case["name"], "records": records}) + "\n")
                results.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
