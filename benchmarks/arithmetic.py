"""Operations of a step, counted from its samples."""

from __future__ import annotations

import torch
from torch import Tensor

from nld_train.config.counts import training_flops
from nld_train.config.schema import Config
from nld_train.training.stages.kind import StageKind


def arithmetic(config: Config, micro_batches: list[dict[str, Tensor]], kind: StageKind) -> float:
    """Operations of a step, counted from the rows and the visible pairs of its samples."""
    total = 0.0
    for batch in micro_batches:
        for row in range(len(batch["tokens"])):
            rows = int(batch["supervised"][row].sum()) + (int(batch["masked"][row].sum()) if kind.noisy_stream else 0)
            documents = batch["documents"][row, :-1]
            pairs = visible_pairs(documents, config.diffusion.block_size, kind)
            total += training_flops(config.model, max(kind.stream_lengths(len(documents))), pairs, rows)
    return total


def visible_pairs(documents: Tensor, block_size: int, kind: StageKind) -> int:
    """Visible pairs of query and key in one sample, whose documents are int `[L]`; summed over the documents."""
    lengths = torch.unique_consecutive(documents, return_counts=True)[1].tolist()
    return sum(kind.visible_pairs(each, block_size) for each in lengths)
