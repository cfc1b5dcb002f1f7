"""The time of an optimizer step under a layout: arithmetic, communication, pipeline bubble, update.

A first-order model. Arithmetic has one utilisation, whatever the sizes of the products; transfers reach a fraction of
the bandwidth; no other communication is counted than that of the functions below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.config.plan import micro_batches, replicas
from nld_train.config.schema import Config
from nld_train.planner.activations import gathered_positions, positions
from nld_train.planner.arithmetic import BACKWARD, arithmetic_seconds
from nld_train.planner.buffers import bytes_per_number, state_bytes
from nld_train.planner.hardware import Hardware
from nld_train.planner.trained import ALL, Trained

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind

_FLOAT32 = 4
_GIGA = 1e9


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by cause.

    Attributes:
        arithmetic: of the slowest pipeline rank.
        tensor: exposed communication between tensor-parallel ranks.
        context: all-gather of keys and values between context-parallel ranks.
        pipeline: transfers between pipeline ranks.
        bubble: idle time at the ends of the pipeline.
        data: exposed reduction of gradients and all-gather of weights.
        update: the optimizer's passes over its state.
    """

    arithmetic: float
    tensor: float
    context: float
    pipeline: float
    bubble: float
    data: float
    update: float

    @property
    def exposed(self) -> float:
        """Communication that is not hidden behind arithmetic."""
        return self.tensor + self.context + self.pipeline + self.data

    @property
    def total(self) -> float:
        """The sum of all."""
        return self.arithmetic + self.exposed + self.bubble + self.update


def step_time(
    config: Config,
    world_size: int,
    kind: StageKind,
    hardware: Hardware,
    node_size: int,
    trained: Trained = ALL,
) -> StepTime:
    """Expected seconds of a step of a stage.

    Args:
        config: the run.
        world_size: number of devices.
        kind: of the stage.
        hardware: figures of the machines.
        node_size: devices of a node.
        trained: what the stage trains.
    """
    count = micro_batches(config, world_size)
    arithmetic = arithmetic_seconds(config, kind, hardware, trained)
    tensor = _tensor_parallel(config, kind, hardware)
    context = _context_parallel(config, kind, hardware, node_size)
    transfer = _pipeline_transfer(config, kind, hardware, world_size, node_size)
    parallel = config.parallel
    idle = (parallel.pipeline - 1) / (parallel.virtual_pipeline or 1)
    return StepTime(
        arithmetic=count * arithmetic,
        tensor=count * tensor,
        context=count * context,
        pipeline=count * transfer,
        bubble=idle * (arithmetic + tensor + context + transfer),
        data=_data_parallel(config, world_size, hardware, node_size, arithmetic, trained),
        update=_update(config, world_size, hardware, trained),
    )


def _tensor_parallel(config: Config, kind: StageKind, hardware: Hardware) -> float:
    """Seconds of exposed communication of one micro-batch on one process.

    Each layer all-reduces two tensors of the residual stream in its forward pass and two in its backward pass; an
    all-reduce moves 2 (t - 1) / t of the tensor. Sequence parallelism replaces each by a reduce-scatter and an
    all-gather of the same volume together; the additional all-gather in the backward pass overlaps a product.
    Full recomputation repeats the forward pass.
    """
    parallel = config.parallel
    if parallel.tensor == 1:
        return 0.0
    tensor = positions(config, kind) * config.model.hidden_size * bytes_per_number(config)
    part = (parallel.tensor - 1) / parallel.tensor * tensor
    passes = 3 if config.execution.recompute == "full" else 2
    volume = config.model.num_hidden_layers / parallel.pipeline * passes * 2 * 2 * part
    return volume / (hardware.nvlink * _GIGA * hardware.bandwidth_share) * (1 - hardware.tensor_overlap)


def _context_parallel(config: Config, kind: StageKind, hardware: Hardware, node_size: int) -> float:
    """Seconds of one micro-batch on one process: none of it overlaps.

    Each layer all-gathers keys and values (`gathered_positions`), and in its backward pass reduce-scatters their
    gradients, which is the same volume; recomputation of attention all-gathers once more.
    """
    model, parallel = config.model, config.parallel
    if parallel.context == 1:
        return 0.0
    key = model.num_key_value_heads * model.head_dim / parallel.tensor
    whole = 2 * key * gathered_positions(config, kind) * bytes_per_number(config)
    passes = 2 if config.execution.recompute == "none" else 3
    volume = model.num_hidden_layers / parallel.pipeline * passes * (parallel.context - 1) / parallel.context * whole
    return volume / _ring_bandwidth(config, parallel.context, hardware, node_size)


def _pipeline_transfer(config: Config, kind: StageKind, hardware: Hardware, world_size: int, node_size: int) -> float:
    """Seconds of one micro-batch: its hidden states forward and their gradient back, once per virtual stage."""
    parallel = config.parallel
    if parallel.pipeline == 1:
        return 0.0
    volume = positions(config, kind) * config.model.hidden_size * bytes_per_number(config)
    if parallel.sequence:
        volume //= parallel.tensor
    # Consecutive pipeline ranks are a whole block of data-parallel times tensor-parallel ranks apart.
    inside = world_size <= node_size
    bandwidth = (hardware.nvlink if inside else hardware.network) * _GIGA * hardware.bandwidth_share
    return 2 * (parallel.virtual_pipeline or 1) * volume / bandwidth


def _data_parallel(
    config: Config,
    world_size: int,
    hardware: Hardware,
    node_size: int,
    micro_batch_seconds: float,
    trained: Trained,
) -> float:
    """Reduce-scatter of float32 gradients and all-gather of trained weights, each (d - 1) / d of its buffer.

    Among all d replicas. With the overlap settings, gradients overlap the last micro-batch's backward pass and
    weights the first one's forward pass; overlapped time is not counted.
    """
    size = replicas(config, world_size)
    if size == 1:
        return 0.0
    ranks = range(config.parallel.pipeline)
    gradients = max(state_bytes(config, world_size, rank, trained=trained).gradients for rank in ranks)
    bandwidth = _ring_bandwidth(config, size, hardware, node_size)
    part = (size - 1) / size / bandwidth
    reduction, gathering = part * gradients, part * _trained_bytes(config, gradients)
    forward = 1 / (1 + BACKWARD)
    hidden_forward = micro_batch_seconds * forward if config.parallel.overlap_param_gather else 0.0
    hidden_backward = micro_batch_seconds * (1 - forward) if config.parallel.overlap_grad_reduce else 0.0
    return max(0.0, reduction - hidden_backward) + max(0.0, gathering - hidden_forward)


def _ring_bandwidth(config: Config, size: int, hardware: Hardware, node_size: int) -> float:
    """Bytes per second of a ring over a data-parallel or context-parallel group.

    `node_size / tensor` processes of each group are on one node and share its network adapters with the other groups;
    between nodes a ring moves its volume once per node.
    """
    in_node = max(1, node_size // config.parallel.tensor)
    inside = hardware.nvlink
    across = hardware.network * in_node
    return (inside if size <= in_node else min(inside, across)) * _GIGA * hardware.bandwidth_share


def _trained_bytes(config: Config, gradients: int) -> float:
    """Of the weights that have gradients, whose buffers have a float32 each."""
    return gradients * bytes_per_number(config) / _FLOAT32


def _update(config: Config, world_size: int, hardware: Hardware, trained: Trained) -> float:
    """Reads and writes of the optimizer's shard, and three passes over the gradients: zeroing, norm, clipping."""
    state = state_bytes(config, world_size, 0, trained=trained)
    moved = 2 * state.optimizer + 3 * state.gradients + _trained_bytes(config, state.gradients)
    return moved / (hardware.memory_bandwidth * _GIGA * hardware.bandwidth_share)
