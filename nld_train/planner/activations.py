"""Activation memory: what the forward pass stores for the backward pass, counted layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.config.schema import Config, LoraConfig
from nld_train.planner.buffers import bytes_per_number
from nld_train.planner.tower import micro_batches_with_pictures, pictures_bytes, pictures_working_bytes
from nld_train.planner.trained import ALL, Trained

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind

_FLOAT32 = 4


@dataclass(frozen=True)
class Kernels:
    """Tensors that kernels store in addition to those that the derivatives need, per norm and per MLP.

    Attributes:
        norm: of the width of the residual stream.
        mlp: of the width of the MLP.
    """

    norm: int
    mlp: int


# Fused kernels, as on CUDA, and plain torch, as on the CPU, which also stores the normalised input before its scale,
# silu(gate) and a copy of up.
FUSED, PLAIN = Kernels(norm=0, mlp=0), Kernels(norm=1, mlp=2)


def positions(config: Config, kind: StageKind) -> int:
    """Positions of one micro-batch that pass through the layers of a process."""
    length = max(kind.stream_lengths(config.batch.sequence_length))
    return length * config.batch.micro_size // config.parallel.context


def gathered_positions(config: Config, kind: StageKind) -> int:
    """Positions of one micro-batch whose keys context-parallel processes gather from each other.

    The clean ones, where each block of the noisy stream lies whole on a process: without document borders, if the
    chunks of the stream divide into blocks. All of both streams otherwise (`model.attention.gather.Exchange`).
    """
    length, sizes = config.batch.sequence_length, config.parallel.context
    total, noisy = max(kind.stream_lengths(length)), kind.noisy_length(length)
    whole = config.data.documents == "ignore" and noisy % (2 * sizes * config.diffusion.block_size) == 0
    return (total - noisy if whole else total) * config.batch.micro_size


def layer_bytes(config: Config, kind: StageKind, kernels: Kernels = FUSED) -> int:
    """Bytes that a layer stores of one micro-batch on one process, with `execution.recompute` none or selective.

    Stored are the inputs of both norms and of all products; query and key after rotation, and the joint output of the
    query-key-value product, of which the value is a view; attention's output, once for its own backward pass and once
    laid out for the output product; its log-sum-exp in float32. Selective recomputation drops the first and the last
    of these four.

    Under context parallelism attention stores the gathered keys and values, and those of its own that are not gathered,
    instead of those of the product that they come from; selective recomputation gathers them again.
    """
    model, tensor = config.model, config.parallel.tensor
    query, key = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    stream = (4 + 2 * kernels.norm) * residual_width(config)
    attention: float = (query + 2 * key) + (query + key) + query
    attention_extra = 0.0
    if config.execution.recompute == "none":
        if config.parallel.context > 1:
            own, gathered = positions(config, kind), gathered_positions(config, kind)
            kept = own - gathered // config.parallel.context
            attention = query + (gathered + kept) / own * 2 * key + query
        attention += query
        attention_extra = _FLOAT32 * model.num_attention_heads / tensor
    mlp = (3 + kernels.mlp) * model.intermediate_size
    numbers = stream + (attention + mlp) / tensor
    norms = 2 * _FLOAT32 * residual_width(config) / model.hidden_size  # one scale per token and norm
    return round(positions(config, kind) * (bytes_per_number(config) * numbers + attention_extra + norms))


def residual_width(config: Config) -> float:
    """Numbers per token of the residual stream on one process: sequence parallelism splits the tokens."""
    parts = config.parallel.tensor if config.parallel.sequence else 1
    return config.model.hidden_size / parts


def residual_bytes(config: Config, kind: StageKind) -> int:
    """One tensor of the residual stream of a micro-batch: all that full recomputation stores of a layer."""
    return round(positions(config, kind) * residual_width(config) * bytes_per_number(config))


def micro_batches_in_flight(config: Config, pipeline_rank: int, micro_batches: int) -> int:
    """Largest number of chunks of layers that wait for their backward pass: Megatron's schedules after warm-up."""
    parallel = config.parallel
    chunks = parallel.virtual_pipeline or 1
    behind = parallel.pipeline - pipeline_rank - 1
    warm_up = behind if chunks == 1 else 2 * behind + (chunks - 1) * parallel.pipeline
    return min(warm_up + 1, micro_batches * chunks)


def kept_bytes(config: Config, kind: StageKind, pipeline_rank: int, micro_batches: int, trained: Trained = ALL) -> int:
    """Peak activation memory of the layers of a process, in bytes, including the layer that is being computed.

    The first pipeline rank of a vision-language model stores activations of the tower too. A layer of the tower is
    computed while the layers store nothing of the same micro-batch.

    With a LoRA its low-rank activations are added; inputs of frozen products, which need not be stored, are counted all
    the same.
    """
    in_flight = micro_batches_in_flight(config, pipeline_rank, micro_batches)
    stored, working = _stored_and_working_bytes(config, kind, trained.lora)
    if pipeline_rank > 0 or config.model.vision is None:
        return in_flight * stored + working
    pictures = micro_batches_with_pictures(config, micro_batches) * pictures_bytes(config, trained.weights)
    return pictures + (in_flight - 1) * stored + max(stored + working, pictures_working_bytes(config, trained.weights))


def _stored_and_working_bytes(config: Config, kind: StageKind, lora: LoraConfig | None) -> tuple[int, int]:
    """Of a chunk of layers for one micro-batch: what waits for the backward pass, and what that needs beside it."""
    chunks = config.parallel.virtual_pipeline or 1
    layers = config.model.num_hidden_layers // (config.parallel.pipeline * chunks)
    layer = layer_bytes(config, kind)
    if lora is not None:
        layer += positions(config, kind) * lora.rank * len(lora.targets) * bytes_per_number(config)
    if config.execution.recompute != "full":
        return layers * layer, _working_bytes(config, kind)
    unit = min(config.execution.recompute_layers, layers)
    return -(-layers // unit) * residual_bytes(config, kind), unit * layer + _working_bytes(config, kind)


def _working_bytes(config: Config, kind: StageKind) -> int:
    """Temporary gradients inside a layer's backward pass: of the MLP's inner width, and of its input.

    Under sequence parallelism the input and its gradient are gathered whole.
    """
    model, tensor = config.model, config.parallel.tensor
    numbers = 3 * model.intermediate_size / tensor + 2 * model.hidden_size
    return round(positions(config, kind) * numbers * bytes_per_number(config))


def head_bytes(config: Config, kind: StageKind) -> int:
    """Peak memory of head and loss on the last pipeline stage, in bytes.

    All rows may be supervised: each AR row, and with a level near 1 each noisy position. Stored are their hidden
    states, the whole sequence that they were taken from and its gradient, and of one chunk of rows the logits: in the
    weights' precision, in float32, as probabilities that become the gradient, and as that gradient in the weights'
    precision.
    """
    number, tensor = bytes_per_number(config), config.parallel.tensor
    rows = positions(config, kind)
    hidden = (2 * rows + 2 * positions(config, kind)) * config.model.hidden_size * number
    chunk = min(rows, config.execution.head_chunk_rows)
    logits = chunk * config.model.vocab_size / tensor * (2 * number + 2 * _FLOAT32)
    # After the last chunk, whose products have been added to the float32 buffer, Megatron's hook gets a tensor in place
    # of the gradient of the head's weights.
    gradient = config.model.vocab_size / tensor * config.model.hidden_size * number
    return round(hidden + max(logits, gradient))
