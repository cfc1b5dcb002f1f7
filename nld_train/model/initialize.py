"""Initial weights that do not depend on the parallel layout: each tensor is drawn whole, from its own generator.

Megatron's own initialisation depends on the layout. Here a tensor's values are a pure function of the seed and of its
global name, so that one process, TP4 and PP2 all start from the same model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor

from nld_train.config.schema import ModelConfig
from nld_train.model.ministral3 import Ministral3Model

# Products whose output is added to the residual stream.
_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")


@torch.no_grad()
def initialize(chunks: list[Ministral3Model], model: ModelConfig, seed: int) -> None:
    """Fills the weights of this rank's part of the model.

    Matrices are normal with standard deviation `model.initializer_range`, divided by `sqrt(2 * layers)` where they
    write to the residual stream; norms are 1; biases, which a projector can have, are 0; embedding and head rows that
    only pad the vocabulary are 0.
    """
    for chunk in chunks:
        for shard in shards(chunk.sharded_state_dict()):
            _fill(shard, model, seed)


def shards(sharded: object) -> Iterator[ShardedTensor]:
    """Every sharded tensor of a sharded state dict, those of factories included."""
    if isinstance(sharded, ShardedTensorFactory):
        yield from shards(sharded.build())
    elif isinstance(sharded, ShardedTensor):
        yield sharded
    elif isinstance(sharded, dict):
        for value in sharded.values():
            yield from shards(value)
    elif isinstance(sharded, list):
        for value in sharded:
            yield from shards(value)


def _fill(shard: ShardedTensor, model: ModelConfig, seed: int) -> None:
    """Draws the whole tensor and copies this rank's part."""
    data, axes = shard.data, shard.prepend_axis_num
    assert data is not None
    if data.dim() == 1:
        data.fill_(0.0 if shard.key.endswith(".bias") else 1.0)
        return
    layer, shape = shard.global_offset[:axes], list(shard.global_shape[axes:])
    name = f"{shard.key}/{'.'.join(map(str, layer))}"
    if shard.key.startswith(("embedding.", "output_layer.")):
        shape[0] = model.vocab_size
    std = model.initializer_range
    if shard.key.endswith(_RESIDUAL):
        std /= math.sqrt(2 * model.num_hidden_layers)
    whole = torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator_of(seed, name))
    copy_part(data, whole, shard.global_offset[axes:])


def copy_part(part: Tensor, whole: Tensor, offset: tuple[int, ...]) -> None:
    """Copies the box of `whole` at `offset` into `part`; elements beyond `whole` (padding) become 0."""
    part.zero_()
    box = whole[tuple(slice(start, start + size) for start, size in zip(offset, part.shape, strict=True))]
    part[tuple(slice(0, size) for size in box.shape)].copy_(box)


def generator_of(seed: int, name: str) -> torch.Generator:
    """The generator of a tensor's initial values, by its global name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
