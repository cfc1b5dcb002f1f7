"""Counted activations against what autograd really keeps, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from real_builds import layout_config, rank_of

from nld_train.config.schema import Config
from nld_train.planner.activations import PLAIN, layer_bytes, micro_batches_in_flight
from nld_train.training.stages.ar import AR
from nld_train.training.stages.joint import JOINT

# As on a GPU the layers dwarf what is kept once per micro-batch; still the whole test takes seconds.
WIDE = (
    "model.hidden_size=96",
    "model.intermediate_size=256",
    "model.num_attention_heads=8",
    "model.num_key_value_heads=4",
    "model.head_dim=16",
    "batch.sequence_length=64",
    "batch.micro_size=2",
    "execution.device=cpu",
)


def _kept_bytes(config: Config, joint: bool) -> int:
    """Bytes of all storages that a forward pass through the layers keeps, weights and shared angles left out."""
    from nld_train.masking.context_parallel import ContextShard
    from nld_train.masking.layout import StreamLayout
    from nld_train.model import streams
    from nld_train.model.build import build_model, transformer_config
    from nld_train.model.rotary import RotaryEmbedding

    device = torch.device("cpu")
    ranks = config.parallel.context
    with rank_of(config, 0, ranks):
        (chunk,) = build_model(config, transformer_config(config, device), device)
        for parameter in chunk.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        documents = torch.zeros(config.batch.micro_size, config.batch.sequence_length, dtype=torch.int64)
        layout = StreamLayout.of(documents, config.diffusion.block_size, joint)
        rotary = RotaryEmbedding(config.model, device)
        shard = ContextShard(0, ranks, layout.length, layout.noisy_length) if ranks > 1 else None
        handle = streams.register(streams.StreamContext.of(layout, rotary, torch.float32, shard=shard))
        context: Any = streams.lookup(handle)
        left_out = {
            tensor.untyped_storage().data_ptr() for tensor in (*chunk.parameters(), context.cosine, context.sine)
        }
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            # The dense backend keeps its mask as numbers in each layer; those for GPUs have one for all layers.
            is_mask = tensor.dim() == 4 and tensor.shape[-2:] == (layout.total_length // ranks, layout.total_length)
            if storage.data_ptr() not in left_out and not is_mask:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        travelling = layout.total_length // ranks
        hidden = torch.randn(travelling, config.batch.micro_size, config.model.hidden_size, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = chunk.decoder(hidden_states=hidden, attention_mask=handle)
        assert output.requires_grad
        streams.clear()
        return sum(kept.values())


def _of_layers(config: Config, joint: bool) -> float:
    """Per layer: the difference between eight layers and four, so that embedding and final norm do not count."""
    from dataclasses import replace

    fewer = replace(config, model=replace(config.model, num_hidden_layers=4))
    return (_kept_bytes(config, joint) - _kept_bytes(fewer, joint)) / 4


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize(
    ("joint", "attention", "context"),
    [(False, "chunked", 1), (True, "dense", 1), (False, "dense", 2), (True, "dense", 2), (True, "dense", 4)],
)
def test_layers_keep_what_is_counted(joint: bool, attention: str, context: int, recompute: str) -> None:
    """Over groups that send nothing: of what is gathered, the size is right."""
    settings = (f"execution.attention={attention}", f"execution.recompute={recompute}", f"parallel.context={context}")
    config = layout_config(context, *WIDE, *settings)
    counted, measured = layer_bytes(config, JOINT if joint else AR, PLAIN), _of_layers(config, joint)
    assert counted == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(
    ("pipeline", "virtual", "micro_batches", "in_flight"),
    [
        (1, "null", 8, [1]),
        (4, "null", 8, [4, 3, 2, 1]),
        (4, "null", 2, [2, 2, 2, 1]),
        # 2 (p - rank - 1) + (v - 1) p + 1 chunks after the warm-up of the interleaved schedule.
        (4, "2", 8, [11, 9, 7, 5]),
        (2, "4", 2, [8, 7]),
    ],
)
def test_micro_batches_in_flight(pipeline: int, virtual: str, micro_batches: int, in_flight: list[int]) -> None:
    world = pipeline
    overrides = (f"parallel.pipeline={pipeline}", f"parallel.virtual_pipeline={virtual}")
    config = layout_config(world, *overrides)
    assert [micro_batches_in_flight(config, rank, micro_batches) for rank in range(pipeline)] == in_flight
