"""One process of a group that takes drafter steps under several layouts (started by `run_ranks`).

    drafter_worker.py CASES.json RESULTS.json

A case is `{"name", "config"}`, and `"naive": true` for the computation by hand. Rank 0 writes `{name: outcome}`.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from decoding_readings import Counting, readings
from naive_drafter import NaiveDrafter
from torch import Tensor
from trainee import Trainee, run_cases

from nld_train.config.schema import Config
from nld_train.decoding import DecodeOptions
from nld_train.decoding.algorithms.decode import decode
from nld_train.model.adapter_files import tensor_names
from nld_train.model.adapters import DRAFTER, adapter_tensors, load_adapter

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


class DrafterTrainee(Trainee):
    """With a drafter adapter that has learned something."""

    def prepared(self, chunks: list[Any]) -> list[Any]:
        chunks = super().prepared(chunks)
        load_adapter(chunks, DRAFTER, whole_adapter(self.config))
        return chunks

    def train(self) -> dict[str, Any]:
        """Records of all steps, the adapter they end with, and what it then drafts."""
        before = self.frozen()
        records = list(self.steps())
        kept = all(torch.equal(old, new) for old, new in zip(before, self.frozen(), strict=True))
        tensors = adapter_tensors(self.chunks, DRAFTER)
        return {
            "records": records,
            "frozen": kept,
            "adapter": {name: tensor.tolist() for name, tensor in tensors.items()},
            **self._decode(),
        }

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
    trainee = DrafterTrainee(config, device)
    (chunk,) = trainee.chunks
    measures = NaiveDrafter(config, chunk).step()
    # Where the wrapper of data parallelism collects them.
    gradients = [parameter.main_grad for parameter in chunk.parameters() if parameter.requires_grad]
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    return {**measures, "grad_norm": norm}


def outcome(config: Config, device: torch.device, naive: bool) -> dict[str, Any]:
    return by_hand(config, device) if naive else DrafterTrainee(config, device).train()


if __name__ == "__main__":
    run_cases(sys.argv[1], sys.argv[2], outcome)
