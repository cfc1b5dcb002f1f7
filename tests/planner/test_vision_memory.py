"""Counted memory of a vision tower against what its forward pass really keeps, and buffers really built."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import astuple, replace
from typing import Any, get_args

import pytest
import torch
from pictures import drawn, vision_override
from real_builds import built_state_bytes, layout_config
from torch.multiprocessing.reductions import StorageWeakRef

from nld_train.config.schema import Config, TrainedWeights
from nld_train.model.vision import encoder
from nld_train.model.vision.encoder import VisionEncoder
from nld_train.model.vision.pictures import Pictures
from nld_train.planner import tower
from nld_train.planner.activations import kept_bytes
from nld_train.planner.buffers import state_bytes
from nld_train.planner.tower import (
    chunks_of_patches,
    micro_batches_with_pictures,
    pictures_bytes,
    pictures_working_bytes,
    tower_layer_bytes,
)
from nld_train.planner.trained import Trained
from nld_train.training.loop.trained_weights import is_trained
from nld_train.training.stages.joint import JOINT

ALL_TRAINED = get_args(TrainedWeights)
SHAPES: dict[str, dict[str, object]] = {
    "small": {},
    "deep": {"num_hidden_layers": 5, "hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 3},
    "wide": {"hidden_size": 64, "intermediate_size": 256, "image_size": 48, "hidden_act": "gelu"},
    "merges nine": {"spatial_merge_size": 3, "patch_size": 2, "image_size": 36, "multimodal_projector_bias": "true"},
}


def _config(*overrides: str, world: int = 1, device: str = "cpu", **shape: object) -> Config:
    sizes = ("batch.sequence_length=128", f"execution.device={device}")
    return layout_config(world, f"model.vision={vision_override(**shape)}", *sizes, *overrides)


def _tensors() -> Iterator[torch.Tensor]:
    return (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))


def _kept_bytes(config: Config, trained: TrainedWeights, dtype: torch.dtype) -> int:
    """Bytes of all storages that live after a forward pass because of it, without the features and their parts."""
    assert config.model.vision is not None
    vision = VisionEncoder(config.model, dtype, recompute=config.execution.recompute == "full").train()
    for name, weight in vision.named_parameters():
        torch.nn.init.normal_(weight, std=0.1)
        weight.requires_grad_(is_trained(f"vision.{name}", trained))
    edge = config.model.vision.image_size
    pictures = Pictures.of([drawn((edge, edge), seed) for seed in range(config.batch.micro_size)])
    pictures = replace(pictures, pixel_values=pictures.pixel_values.to(dtype))
    saved: dict[int, tuple[StorageWeakRef, int]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        reference = StorageWeakRef(tensor.untyped_storage())
        saved.setdefault(reference.cdata, (reference, tensor.untyped_storage().nbytes()))
        return tensor

    gc.collect()
    before = {each.untyped_storage()._cdata for each in _tensors()}
    # Pixels are part of what the tower keeps where it is trained.
    before.discard(pictures.pixel_values.untyped_storage()._cdata)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = vision(pictures)
    pixels = StorageWeakRef(pictures.pixel_values.untyped_storage()).cdata
    del pictures
    gc.collect()
    kept = {key: size for key, (reference, size) in saved.items() if not reference.expired()}
    kept |= {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in _tensors()}
    for own in (*before, features.untyped_storage()._cdata):
        kept.pop(own, None)
    assert (pixels in kept) == (trained == "all")
    return sum(kept.values())


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("trained", ALL_TRAINED)
@pytest.mark.parametrize("name", SHAPES)
def test_a_tower_keeps_what_is_counted(name: str, trained: TrainedWeights, recompute: str) -> None:
    config = _config(f"execution.recompute={recompute}", **SHAPES[name])
    assert pictures_bytes(config, trained) == pytest.approx(_kept_bytes(config, trained, torch.float32), rel=0.02)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_tower_in_bf16_keeps_what_is_counted(recompute: str) -> None:
    """The norms keep their input in float32."""
    words = (f"execution.recompute={recompute}", "execution.precision=bf16", "batch.micro_size=2")
    config = _config(*words, device="auto")
    assert pictures_bytes(config, "all") == pytest.approx(_kept_bytes(config, "all", torch.bfloat16), rel=0.02)


@pytest.mark.parametrize(("limit", "chunks"), [(1, [256] * 4), (600, [512, 512]), (800, [768, 256]), (4096, [1024])])
def test_pictures_share_a_mask_as_they_pass_together(
    monkeypatch: pytest.MonkeyPatch, limit: int, chunks: list[int]
) -> None:
    for module in (encoder, tower):
        monkeypatch.setattr(module, "PATCHES_TOGETHER", limit)
    config = _config("batch.micro_size=4")
    assert chunks_of_patches(config) == chunks
    assert pictures_bytes(config, "all") == pytest.approx(_kept_bytes(config, "all", torch.float32), rel=0.02)
    short = replace(config, batch=replace(config.batch, sequence_length=16))
    assert sum(chunks_of_patches(short)) == 4 * 16 * 4, "no more patches than fit into a sample"


def test_unaligned_masks_are_copied_in_each_layer_on_cuda() -> None:
    """Not compared with a real run, which needs a GPU."""
    long = "batch.sequence_length=512"
    aligned, odd = (_config(long, image_size=edge, spatial_merge_size=1) for edge in (64, 68))
    for config, patches, copied in ((aligned, 512, 0), (odd, 578, 4 * 578 * 584)):
        on_cuda = replace(config, execution=replace(config.execution, device="cuda", precision="fp32"))
        assert chunks_of_patches(config) == [patches]
        vision: Any = config.model.vision
        layers = [tower_layer_bytes(each, vision, patches) for each in (config, on_cuda)]
        assert layers[1] - layers[0] == copied


@pytest.mark.parametrize(("pipeline", "virtual"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_micro_batches_that_wait_with_their_pictures(pipeline: int, virtual: int, groups: int) -> None:
    """On the first rank, in the order in which Megatron's schedules pass chunks of layers forward and backward."""
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    count = groups * pipeline
    chunks = f"parallel.virtual_pipeline={virtual if virtual > 1 else 'null'}"
    config = _config(f"parallel.pipeline={pipeline}", chunks, world=pipeline)
    order = [chunk for _, chunk in get_schedule_table(count, virtual, pipeline)]
    behind = pipeline - 1
    warm_up = min(behind if virtual == 1 else 2 * behind + (virtual - 1) * pipeline, len(order))
    waiting = most = 0
    for unit in range(len(order) + warm_up):
        if unit < len(order):
            waiting += order[unit] == 0
        most = max(most, waiting)
        if unit >= warm_up:
            waiting -= virtual - 1 - order[unit - warm_up] == 0
    assert waiting == 0
    assert micro_batches_with_pictures(config, count) == most


def test_only_the_first_stage_keeps_pictures() -> None:
    """A tower's layer is computed while the layers keep nothing of the same micro-batch."""
    layout = ("parallel.pipeline=2", "batch.micro_size=2")
    both, text = (_config(*layout, world=2), layout_config(2, *layout, "batch.sequence_length=128"))
    text = replace(text, execution=replace(text.execution, device="cpu"))
    for rank in range(2):
        kept, of_text = (kept_bytes(config, JOINT, rank, 8) for config in (both, text))
        assert kept - of_text == (0 if rank else 2 * pictures_bytes(both, "all"))
    frozen = kept_bytes(both, JOINT, 0, 8, Trained("text"))
    assert frozen == kept_bytes(text, JOINT, 0, 8)
    large = _config("model.num_hidden_layers=1", "batch.sequence_length=64", intermediate_size=4096)
    small = replace(large, model=replace(large.model, vision=None))
    assert kept_bytes(large, JOINT, 0, 1, Trained("text")) == pictures_working_bytes(large, "text")
    assert kept_bytes(small, JOINT, 0, 1) < pictures_working_bytes(large, "text")


@pytest.mark.parametrize("trained", ALL_TRAINED)
@pytest.mark.parametrize(("world", "layout"), [(2, ()), (2, ("parallel.tensor=2",)), (2, ("parallel.pipeline=2",))])
def test_bytes_of_trained_weights_are_those_of_a_real_build(
    trained: TrainedWeights, world: int, layout: tuple[str, ...]
) -> None:
    config = _config("execution.precision=bf16", *layout, world=world, device="auto")
    counted = state_bytes(config, world, 0, trained=Trained(trained))
    assert astuple(counted) == built_state_bytes(config, 0, world, Trained(trained))
