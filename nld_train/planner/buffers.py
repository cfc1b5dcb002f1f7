"""Weights, gradients and optimizer state of one process, to the byte, in the layout of Megatron's buffers.

Megatron puts the weights of a model's chunk, the last ones first, into one buffer of weights and one of gradients, each
weight at a multiple of 64 elements, divided into buckets whose ends are padded so that all replicas (data-parallel and
context-parallel ranks) get equal shards. The distributed optimizer has the state of the weights in its shard of each
bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import lcm, prod

from nld_train.config.counts import bucket_elements, padded_vocabulary
from nld_train.config.low_rank import layer_changes
from nld_train.config.plan import replicas
from nld_train.config.schema import Config, LoraConfig, ModelConfig, ParallelConfig, TrainedWeights
from nld_train.config.vision_tensors import PROJECTOR, vision_tensors
from nld_train.planner.trained import ALL, Trained

_START, _END = 64, 128
# Gradients are reduced in float32; so are the optimizer's copy of the weights and its two averages.
_FLOAT32 = 4


@dataclass(frozen=True)
class StateBytes:
    """Memory of a process without activations, in bytes.

    Attributes:
        weights: of its shard of the model.
        gradients: in float32.
        optimizer: its shard of the state.
        gathered: while a checkpoint is saved: one part of the optimizer's state of the largest bucket, from all
            replicas, and this process's shard of it, which is sent. In host memory a process has all three parts, 12
            bytes per weight of its shard of the model.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int


def state_bytes(
    config: Config,
    world_size: int,
    pipeline_rank: int,
    data_rank: int = 0,
    trained: Trained = ALL,
) -> StateBytes:
    """Bytes of one process; the same on each of its tensor-parallel ranks.

    Args:
        config: the run.
        world_size: number of processes.
        pipeline_rank: of the process.
        data_rank: of the process, among the replicas. The shard of the first one has no padding at its end, so that no
            other is larger by more than the padding between weights.
        trained: what has gradients; other weights are in no buffer.
    """
    vocabulary = padded_vocabulary(config)
    size = replicas(config, world_size)
    weight_bytes = bytes_per_number(config)
    shapes = config.model, config.parallel, vocabulary, weight_bytes
    return _state_bytes(*shapes, size, pipeline_rank, data_rank, trained)


def bytes_per_number(config: Config) -> int:
    """Of weights and activations: bf16, unless the settings say float32."""
    single = config.execution.precision == "fp32" or config.execution.device == "cpu"
    return 4 if single else 2


@lru_cache(maxsize=4096)
def _state_bytes(
    model: ModelConfig,
    parallel: ParallelConfig,
    vocabulary: int,
    weight_bytes: int,
    size: int,
    pipeline_rank: int,
    data_rank: int,
    trained: Trained,
) -> StateBytes:
    elements = shard = frozen = 0
    chunks = chunk_weights(model, parallel, vocabulary, pipeline_rank)
    if trained.lora is not None:
        frozen = sum(map(sum, chunks))
        chunks = _chunk_changes(model, parallel, trained.lora)
    elif trained.weights != "all":
        whole = sum(map(sum, chunks))
        chunks = _trained_alone(model, chunks, pipeline_rank, trained.weights)
        frozen = whole - sum(map(sum, chunks))
    most = bucket_elements(size // parallel.context)
    largest = 0
    for weights in filter(None, chunks):
        buckets = list(_buckets(weights, most, size))
        largest = max(largest, *(bucket.end - bucket.start for bucket in buckets))
        elements += buckets[-1].end
        shard += sum(_elements_in_shard(bucket, size, data_rank) for bucket in buckets)
    # The averages, and the float32 copy where the weights are not float32 themselves.
    stored = 3 if weight_bytes < _FLOAT32 else 2
    return StateBytes(
        weights=weight_bytes * (frozen + elements),
        gradients=_FLOAT32 * elements,
        optimizer=stored * _FLOAT32 * shard,
        gathered=_FLOAT32 * (largest + largest // size),
    )


def chunk_weights(
    model: ModelConfig, parallel: ParallelConfig, vocabulary: int, pipeline_rank: int
) -> list[tuple[int, ...]]:
    """Elements of each weight of a process, chunk by chunk, in the order in which Megatron's modules create them."""
    chunks = parallel.virtual_pipeline or 1
    layers = model.num_hidden_layers // (parallel.pipeline * chunks)
    table = (vocabulary // parallel.tensor) * model.hidden_size
    weights = [list(_layer_weights(model, parallel.tensor)) * layers for _ in range(chunks)]
    if pipeline_rank == 0:
        weights[0].insert(0, table)
    if pipeline_rank == parallel.pipeline - 1:
        weights[-1] += [model.hidden_size, table]
    if pipeline_rank == 0:
        weights[0] += [prod(shape) for _, shape in vision_tensors(model)]
    return [tuple(chunk) for chunk in weights]


def _trained_alone(
    model: ModelConfig, chunks: list[tuple[int, ...]], pipeline_rank: int, trained: TrainedWeights
) -> list[tuple[int, ...]]:
    """Of the weights of `chunk_weights` those that are trained."""
    vision = [name for name, _ in vision_tensors(model)] if pipeline_rank == 0 else []
    if trained == "text":
        return [chunks[0][: len(chunks[0]) - len(vision)], *chunks[1:]]
    count = sum(name.startswith(PROJECTOR) for name in vision)
    return [chunks[0][len(chunks[0]) - count :], *[() for _ in chunks[1:]]]


def _chunk_changes(model: ModelConfig, parallel: ParallelConfig, lora: LoraConfig) -> list[tuple[int, ...]]:
    """Elements of each weight of a LoRA, as `chunk_weights`."""
    chunks = parallel.virtual_pipeline or 1
    layers = model.num_hidden_layers // (parallel.pipeline * chunks)
    layer = tuple(chain.from_iterable(layer_changes(model, lora, parallel.tensor)))
    return [layer * layers] * chunks


def _layer_weights(model: ModelConfig, tensor: int) -> Iterator[int]:
    """Norm, output, query with key and value, norm, gate with up, down."""
    hidden, query = model.hidden_size, model.num_attention_heads * model.head_dim
    key = model.num_key_value_heads * model.head_dim
    yield hidden
    yield prod((hidden, query // tensor))
    yield prod((hidden, (query + 2 * key) // tensor))
    yield hidden
    yield prod((hidden, 2 * model.intermediate_size // tensor))
    yield prod((hidden, model.intermediate_size // tensor))


@dataclass(frozen=True)
class _Bucket:
    """Elements `start..end` of a buffer, and the ranges of its weights."""

    start: int
    end: int
    weights: tuple[tuple[int, int], ...]


def _buckets(weights: tuple[int, ...], most: int, size: int) -> Iterator[_Bucket]:
    """The buckets of a chunk, from the back of the model to its front."""
    start = end = 0
    ranges: list[tuple[int, int]] = []
    for elements in reversed(weights):
        first = _up(end, _START)
        end = first + elements
        ranges.append((first, end))
        if end - start >= most:
            end = _up(end, lcm(size, _END))
            yield _Bucket(start, end, tuple(ranges))
            start, ranges = end, []
    if ranges:
        yield _Bucket(start, _up(end, lcm(size, _END)), tuple(ranges))


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _elements_in_shard(bucket: _Bucket, size: int, data_rank: int) -> int:
    """Elements of weights in a data-parallel rank's shard of a bucket."""
    shard = (bucket.end - bucket.start) // size
    begin = bucket.start + data_rank * shard
    return sum(max(0, min(last, begin + shard) - max(first, begin)) for first, last in bucket.weights)
