"""Operations of a step, counted from its own samples."""

from __future__ import annotations

import torch
from torch import Tensor

from nld_train.config.counts import causal_visible_pairs, joint_visible_pairs, training_flops
from nld_train.config.schema import Config


def arithmetic(config: Config, micro_batches: list[dict[str, Tensor]], joint: bool) -> float:
    """Operations of a step, counted from the rows and the visible pairs of its own samples."""
    total = 0.0
    for batch in micro_batches:
        for row in range(len(batch["tokens"])):
            rows = int(batch["supervised"][row].sum()) + (int(batch["masked"][row].sum()) if joint else 0)
            documents = batch["documents"][row, :-1]
            pairs = visible_pairs(documents, config.diffusion.block_size, joint)
            total += training_flops(config.model, len(documents), config.diffusion.block_size, joint, rows, pairs)
    return total


def visible_pairs(documents: Tensor, block_size: int, joint: bool) -> int:
    """Pairs of query and key in one sample, whose documents are int `[L]`; each is a sample of its own."""
    lengths = torch.unique_consecutive(documents, return_counts=True)[1].tolist()
    return sum(joint_visible_pairs(each, block_size) if joint else causal_visible_pairs(each) for each in lengths)
