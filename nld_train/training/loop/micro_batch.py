"""The input of a forward pass, made of a micro-batch in host memory: one copy to the device, and the context there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

from nld_train.config.schema import Config
from nld_train.data.collate import Rows, StreamBatch, layout_of
from nld_train.data.flat_buffer import FlatBuffer
from nld_train.losses.objective import Denominators, row_weights
from nld_train.masking.context_parallel import ContextShard
from nld_train.masking.layout import StreamLayout
from nld_train.model import streams
from nld_train.model.attention.core import make_masks
from nld_train.model.rotary import RotaryEmbedding
from nld_train.model.spec import resolve_attention
from nld_train.model.vision.pictures import Pictures


@dataclass(frozen=True)
class Placement:
    """Where and how the streams of micro-batches are computed: the same for every pass of a stage.

    Attributes:
        rotary: the rotary embedding of the model.
        dtype: of activations.
        device: of this process.
        attention: name of the attention backend, whose masks are made before the pass; None: by the first layer.
    """

    rotary: RotaryEmbedding
    dtype: torch.dtype
    device: torch.device
    attention: str | None = None


def placement_of(config: Config, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device) -> Placement:
    """The placement of the stages of a run; arguments as of `StageKind.make_trainer`."""
    return Placement(rotary, dtype, device, resolve_attention(config.execution.attention, device))


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass and the weights of its rows in the loss.

    Attributes:
        tokens: int64 `[b, S]`, the noisy stream first; under context parallelism this rank's shard of them.
        handle: finds the `StreamContext`, see `model.streams`.
        rows: which rows enter the loss, and their targets.
        ar_weights: float32 `[rows.ar_count]`.
        diffusion_weights: float32, one per masked position, or None in an AR stage.
        pictures: of the clean stream, on the first pipeline stage; None where there are none.
        image_index: where their `[IMG]` tokens are, see `model.vision.pictures.image_index`.
    """

    tokens: Tensor
    handle: Tensor
    rows: Rows
    ar_weights: Tensor
    diffusion_weights: Tensor | None
    pictures: Pictures | None = None
    image_index: Tensor | None = None


def prepare(batch: StreamBatch, divisors: Denominators, placement: Placement) -> MicroBatch:
    """Sends a micro-batch to the device and registers its stream context. The host does not wait for the device.

    Args:
        batch: in host memory.
        divisors: of the whole optimizer step.
        placement: of the stage.
    """
    tensors = batch.tensors.to(placement.device)
    context = stream_context(batch.tensors, tensors, placement, batch.shard)
    ar_shares, diffusion_shares = tensors["shares"].tensor_split([batch.ar_count])
    two_streams = context.layout.two_streams
    seen = batch.pictures is not None and parallel_state.is_pipeline_first_stage(ignore_virtual=True)
    return MicroBatch(
        tokens=tensors["tokens"],
        handle=streams.register(context),
        rows=Rows(tensors["index"], tensors["targets"], batch.ar_count),
        ar_weights=row_weights(ar_shares, divisors.ar),
        diffusion_weights=row_weights(diffusion_shares, divisors.diffusion) if two_streams else None,
        pictures=batch.pictures.to(placement.device) if seen and batch.pictures is not None else None,
        image_index=tensors["image_index"] if seen else None,
    )


def stream_context(
    on_host: FlatBuffer,
    on_device: FlatBuffer,
    placement: Placement,
    shard: ContextShard | None = None,
    of_pass: Callable[[StreamLayout], StreamLayout] = lambda layout: layout,
    adapt_noisy: bool = False,
) -> streams.StreamContext:
    """The context of a micro-batch whose layout is in a buffer (`data.collate.layout_tensors`), with its masks.

    Args:
        on_host: the buffer in host memory.
        on_device: its copy.
        placement: of the stage.
        shard: of the streams on this rank; None without context parallelism.
        of_pass: makes the layout of the pass of that in the buffer.
        adapt_noisy: see `StreamContext.of`.
    """
    context = streams.StreamContext.of(
        of_pass(layout_of(on_host)),
        placement.rotary,
        placement.dtype,
        adapt_noisy=adapt_noisy,
        shard=shard,
        device_layout=None if on_device is on_host else of_pass(layout_of(on_device)),
        borders=on_device["borders"],
    )
    if placement.attention is not None:
        make_masks(placement.attention, context, placement.device)
    return context
