"""Counting parameters and arithmetic from shapes alone."""

from __future__ import annotations

from nld_train.config.schema import AdapterConfig, Config, ModelConfig
from nld_train.masking.schedule import NoiseSchedule, noise_schedule

# A multiply and an add are two operations; the backward pass does the forward pass's products twice, once for the
# gradient of the inputs and once for that of the weights.
_OPERATIONS_PER_PRODUCT = 2
_FORWARD_AND_BACKWARD = 3


def layer_matrix_parameters(model: ModelConfig) -> int:
    """Parameters of one layer's matrices: query, key, value, output, gate, up, down."""
    query_width = model.num_attention_heads * model.head_dim
    key_width = model.num_key_value_heads * model.head_dim
    attention = model.hidden_size * (2 * query_width + 2 * key_width)
    return attention + 3 * model.hidden_size * model.intermediate_size


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the whole model, with an untied head and without vocabulary padding."""
    layer = layer_matrix_parameters(model) + 2 * model.hidden_size
    embedding_and_head = 2 * model.vocab_size * model.hidden_size
    return embedding_and_head + model.num_hidden_layers * layer + model.hidden_size


def padded_vocabulary(config: Config) -> int:
    """The vocabulary rounded up to a multiple of `parallel.tensor`, since each process holds an equal share of it."""
    tensor = config.parallel.tensor
    return -(-config.model.vocab_size // tensor) * tensor


def rank_parameter_counts(config: Config) -> tuple[int, ...]:
    """Parameters that one process holds, for each pipeline rank; all its tensor-parallel peers hold as many.

    The first pipeline rank has the embedding, the last the final norm and the head, each with the padded vocabulary.
    Matrices are cut over tensor-parallel processes, norms are in each of them.
    """
    model, parallel = config.model, config.parallel
    layers = model.num_hidden_layers // parallel.pipeline
    body = layers * (layer_matrix_parameters(model) // parallel.tensor + 2 * model.hidden_size)
    table = padded_vocabulary(config) // parallel.tensor * model.hidden_size
    counts = [body] * parallel.pipeline
    counts[0] += table
    counts[-1] += table + model.hidden_size
    return tuple(counts)


def causal_visible_pairs(length: int) -> int:
    """Pairs of query and key in a causal pass over `length` positions: L(L + 1) / 2."""
    return length * (length + 1) // 2


def joint_visible_pairs(length: int, block_size: int) -> int:
    """Pairs of query and key in a pass over a noisy and a clean stream of `length` positions each, in one document.

    L(2L + B + 1) / 2 where the block size B divides L; counted exactly where the last block is shorter.
    """
    whole_blocks, rest = divmod(length, block_size)
    inside_blocks = whole_blocks * block_size**2 + rest**2
    blocks_before = block_size**2 * (whole_blocks * (whole_blocks - 1) // 2) + rest * whole_blocks * block_size
    return inside_blocks + blocks_before + causal_visible_pairs(length)


def expected_head_rows(length: int, schedule: NoiseSchedule, joint: bool) -> float:
    """Rows of logits that a sample needs: every position's next token and, in a joint pass, the masked positions."""
    return length * (1 + schedule.mean_probability) if joint else float(length)


def training_flops(
    model: ModelConfig,
    length: int,
    block_size: int,
    joint: bool,
    head_rows: float,
    visible_pairs: int | None = None,
) -> float:
    """Floating-point operations of the forward and backward pass over one sample (reference section 4).

    The body counts `length` positions, twice as many if `joint`; attention counts visible pairs only
    (`visible_pairs`, or those of one document without borders where it is None); the head counts `head_rows`
    supervised rows. Recomputation and the optimizer do not count.
    """
    if visible_pairs is None:
        visible_pairs = joint_visible_pairs(length, block_size) if joint else causal_visible_pairs(length)
    positions = 2 * length if joint else length
    body = positions * model.num_hidden_layers * layer_matrix_parameters(model)
    # Each visible pair costs a score and a share of the output, each head_dim products per query head.
    attention = visible_pairs * model.num_hidden_layers * 2 * model.num_attention_heads * model.head_dim
    head = head_rows * model.vocab_size * model.hidden_size
    return float(_FORWARD_AND_BACKWARD * _OPERATIONS_PER_PRODUCT * (body + attention + head))


def drafter_flops(model: ModelConfig, length: int, adapter: AdapterConfig) -> float:
    """Floating-point operations over one sample of a stage that trains a drafter adapter.

    Three forward passes without gradients (AR over L positions; draft and verify over two streams, 2L), then the draft
    pass again with its backward pass, which is one more product each: frozen weights have no gradient. The head counts
    a row per block or position read; the adapter itself and the few rows of the loss do not count.
    """
    passes_of_two_streams = 2 + 2
    positions = length * (1 + 2 * passes_of_two_streams)
    causal, blocks = causal_visible_pairs(length), joint_visible_pairs(length, adapter.block_length)
    # Attention has two operands that carry gradients, so that its backward pass costs two forward passes.
    pairs = causal + (passes_of_two_streams + 1) * blocks
    body = positions * model.num_hidden_layers * layer_matrix_parameters(model)
    attention = pairs * model.num_hidden_layers * 2 * model.num_attention_heads * model.head_dim
    head = (2 * length + length / adapter.block_length) * model.vocab_size * model.hidden_size
    return float(_OPERATIONS_PER_PRODUCT * (body + attention + head))


def step_flops(config: Config, alpha: float, adapter: AdapterConfig | None = None) -> float:
    """Expected operations of one optimizer step over the global batch, without document borders.

    `adapter` is that of a stage that trains one, else None.
    """
    joint = alpha > 0
    length = config.batch.sequence_length
    if adapter is not None:
        return config.batch.global_size * drafter_flops(config.model, length, adapter)
    rows = expected_head_rows(length, noise_schedule(config.diffusion), joint)
    sample = training_flops(config.model, length, config.diffusion.block_size, joint, rows)
    return config.batch.global_size * sample
