"""Counting parameters and arithmetic from shapes alone."""

from __future__ import annotations

from nld_train.config.low_rank import lora_layer_parameters
from nld_train.config.plan import stage_plans
from nld_train.config.schema import CleanVisibility, Config, LoraConfig, ModelConfig, StageConfig
from nld_train.config.stage_kinds import kind_of
from nld_train.config.vision_tensors import picture_flops, vision_parameters

# A multiply and an add are two operations; the backward pass does the forward pass's products twice, once for the
# gradient of the inputs and once for that of the weights.
_OPERATIONS_PER_PRODUCT = 2
_FORWARD_AND_BACKWARD = 3
# Without that of the weights.
_FROZEN = 2

# Megatron's own, with which the messages of a ring stay large enough: elements, and elements per data-parallel rank.
BUCKET, BUCKET_PER_RANK = 40_000_000, 1_000_000


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Parameters of one layer's matrices: query, key, value, output, gate, up, down."""
    query_width = model.num_attention_heads * model.head_dim
    key_width = model.num_key_value_heads * model.head_dim
    attention = model.hidden_size * (2 * query_width + 2 * key_width)
    return attention + 3 * model.hidden_size * model.intermediate_size


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the whole model, with an untied head, vision, and without vocabulary padding."""
    layer = layer_matrix_parameters(model) + 2 * model.hidden_size
    embedding_and_head = 2 * model.vocab_size * model.hidden_size
    return embedding_and_head + model.num_hidden_layers * layer + model.hidden_size + vision_parameters(model)


def padded_vocabulary(config: Config) -> int:
    """The vocabulary rounded up to a multiple of `parallel.tensor`, so that all ranks have equal shards."""
    tensor = config.parallel.tensor
    return -(-config.model.vocab_size // tensor) * tensor


def rank_parameter_counts(config: Config) -> tuple[int, ...]:
    """Parameters of one process, by pipeline rank; the same on each of its tensor-parallel ranks.

    The first pipeline rank has the embedding and the vision tower, the last the final norm and the head, with the
    padded vocabulary. Matrices of the text model are split over tensor-parallel ranks; norms and vision are replicated.
    """
    model, parallel = config.model, config.parallel
    layers = model.num_hidden_layers // parallel.pipeline
    body = layers * (layer_matrix_parameters(model) // parallel.tensor + 2 * model.hidden_size)
    table = padded_vocabulary(config) // parallel.tensor * model.hidden_size
    counts = [body] * parallel.pipeline
    counts[0] += table + vision_parameters(model)
    counts[-1] += table + model.hidden_size
    return tuple(counts)


def causal_visible_pairs(length: int) -> int:
    """Pairs of query and key in a causal pass over `length` positions: L(L + 1) / 2."""
    return length * (length + 1) // 2


def block_visible_pairs(length: int, block_size: int) -> int:
    """Pairs of query and key where each of `length` tokens of a document sees its whole block and those before it.

    L(L + B) / 2 where the block size B divides L; counted exactly where the last block is shorter.
    """
    whole_blocks, rest = divmod(length, block_size)
    inside_blocks = whole_blocks * block_size**2 + rest**2
    blocks_before = block_size**2 * (whole_blocks * (whole_blocks - 1) // 2) + rest * whole_blocks * block_size
    return inside_blocks + blocks_before


def clean_visible_pairs(length: int, block_size: int, clean: CleanVisibility) -> int:
    """Pairs of query and key in the clean stream of one document beside a noisy one, by `diffusion.clean`."""
    return block_visible_pairs(length, block_size) if clean == "block" else causal_visible_pairs(length)


def joint_visible_pairs(length: int, block_size: int, clean: CleanVisibility = "causal") -> int:
    """Pairs of query and key in a pass over a noisy and a clean stream of `length` positions each, in one document.

    L(2L + B + 1) / 2 where the clean stream is causal and the block size B divides L.
    """
    return block_visible_pairs(length, block_size) + clean_visible_pairs(length, block_size, clean)


def answer_visible_pairs(length: int, noisy_length: int, block_size: int, clean: CleanVisibility = "causal") -> int:
    """An estimate of the pairs of query and key where N noisy tokens lie in blocks spread evenly over a document of L.

    N (L + B) / 2 + L (L + 1) / 2 where the clean stream is causal, which is `joint_visible_pairs` for N = L.
    """
    return noisy_length * (length + block_size) // 2 + clean_visible_pairs(length, block_size, clean)


def training_flops(model: ModelConfig, positions: int, visible_pairs: int, head_rows: float) -> float:
    """Floating-point operations of a forward and backward pass (`docs/method.md`, "Stages").

    Recomputation and the optimizer do not count.

    Args:
        model: its shapes.
        positions: number that passes through the layers, in all streams.
        visible_pairs: pairs of query and key that are not masked.
        head_rows: supervised rows of logits.
    """
    return float(
        _FORWARD_AND_BACKWARD * _OPERATIONS_PER_PRODUCT * _products(model, positions, visible_pairs, head_rows)
    )


def frozen_flops(
    model: ModelConfig, lora: LoraConfig | None, positions: int, visible_pairs: int, head_rows: float
) -> float:
    """The same where a LoRA or the projector is trained: products with frozen weights have no gradient of the weights.

    Their backward pass is one product more; that of attention, both of whose operands have gradients, and of the LoRA's
    own products stays two.
    """
    frozen = _products(model, positions, 0, head_rows)
    attention = _products(model, 0, visible_pairs, 0)
    changes = 0 if lora is None else lora_layer_parameters(model, lora)
    own = positions * model.num_hidden_layers * changes
    return float(_OPERATIONS_PER_PRODUCT * (_FROZEN * frozen + _FORWARD_AND_BACKWARD * (attention + own)))


def forward_flops(model: ModelConfig, positions: int, visible_pairs: int, head_rows: float) -> float:
    """Floating-point operations of a forward pass alone; the arguments are those of `training_flops`."""
    return float(_OPERATIONS_PER_PRODUCT * _products(model, positions, visible_pairs, head_rows))


def _products(model: ModelConfig, positions: int, visible_pairs: int, head_rows: float) -> float:
    """Multiplications of a forward pass."""
    body = positions * model.num_hidden_layers * layer_matrix_parameters(model)
    # Each visible pair costs a score and a part of the output, each head_dim products per query head.
    attention = visible_pairs * model.num_hidden_layers * 2 * model.num_attention_heads * model.head_dim
    return body + attention + head_rows * model.vocab_size * model.hidden_size


def step_flops(config: Config, stage: StageConfig) -> float:
    """Expected operations of one optimizer step of a stage over the global batch, without document borders.

    Of a vision-language model with one picture in each sample, as large as it may be.
    """
    pictures = picture_flops(config.model, stage, config.batch.sequence_length)
    return config.batch.global_size * (kind_of(stage).sample_flops(config, stage) + pictures)


def remaining_flops(config: Config, step: int) -> float:
    """Expected operations of the steps after `step` to the end of the run, regardless of `run.max_steps`."""
    return sum(
        (plan.first_step + plan.steps - max(step, plan.first_step)) * step_flops(config, plan.stage)
        for plan in stage_plans(config)
        if step < plan.first_step + plan.steps
    )


def bucket_elements(data_parallel_size: int) -> int:
    """Elements at which a bucket of gradients ends: behind the weight with which it has so many.

    Args:
        data_parallel_size: ranks that train on different samples.
    """
    return max(BUCKET, BUCKET_PER_RANK * data_parallel_size)
