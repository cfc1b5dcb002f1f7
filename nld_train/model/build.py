"""Megatron's configuration and this rank's part of the model, from the settings of a run."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from nld_train.config.counts import padded_vocabulary
from nld_train.config.schema import Config
from nld_train.config.stage_kinds import longest_kind
from nld_train.losses.cross_entropy import resolve_head
from nld_train.model.accelerator import accelerator_settings, compile_layers, make_overlap_buffers
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.rotary import resolve_rotary
from nld_train.model.spec import block_spec, resolve_attention, resolve_layers
from nld_train.model.vision.encoder import VisionEncoder


def resolve_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The type of weights and activations, for the key `execution.precision`: bfloat16 on CUDA, float32 on CPU."""
    if config.execution.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[config.execution.precision]


def transformer_config(config: Config, device: torch.device) -> TransformerConfig:
    """Megatron's configuration of this model, layout and precision."""
    dtype = resolve_dtype(config, device)
    model = config.model
    return TransformerConfig(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # Weights are filled by `initialize` or from a checkpoint, and allocated on the CPU first.
        perform_initialization=False,
        use_cpu_initialization=True,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        pipeline_dtype=dtype,
        autocast_dtype=dtype,
        # The loss of a micro-batch is already its part of the global mean: gradients are summed over micro-batches and
        # ranks without a division. Parity tests verify this.
        calculate_per_token_loss=True,
        **_layout(config),
        **_kernels(config, device),
        **accelerator_settings(config, resolve_layers(config.execution.layers, device)),
        **_recomputation(config),
    )


def _layout(config: Config) -> dict[str, Any]:
    parallel = config.parallel
    virtual = parallel.virtual_pipeline
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "virtual_pipeline_model_parallel_size": virtual,
        "sequence_parallel": parallel.sequence,
        "context_parallel_size": parallel.context,
        # With two pipeline stages and virtual stages on gloo, batched messages between the same two peers are mixed up
        # silently; overlapped, unbatched ones are not.
        "overlap_p2p_comm": virtual is not None,
        "batch_p2p_comm": virtual is None,
        # A synchronisation after every exchange of a pipeline, which versions of torch long before ours needed.
        "batch_p2p_sync": False,
    }


def _kernels(config: Config, device: torch.device) -> dict[str, Any]:
    """Fused kernels, which exist only on CUDA. For weight gradients see `model.weight_gradients`."""
    fused = device.type == "cuda"
    return {
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        "masked_softmax_fusion": False,
    }


def _recomputation(config: Config) -> dict[str, Any]:
    execution = config.execution
    if execution.recompute == "none":
        return {}
    if execution.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(execution.recompute_modules)}
    return {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": execution.recompute_layers,
    }


def build_model(config: Config, megatron: TransformerConfig, device: torch.device) -> list[Ministral3Model]:
    """This rank's part of the model, one element per virtual pipeline stage, with uninitialised weights.

    Args:
        config: the run.
        megatron: from `transformer_config`.
        device: where the weights go. On `meta` nothing is allocated.
    """
    if config.parallel.overlap_tensor:
        # Transformer Engine builds no layers without buffers; `Run` makes those of its stages.
        make_overlap_buffers(config, longest_kind(config))
    virtual = config.parallel.virtual_pipeline
    chunks = [_build_chunk(config, megatron, device, stage) for stage in (range(virtual) if virtual else [None])]
    return chunks if device.type == "meta" else [chunk.to(device) for chunk in chunks]


def _build_chunk(
    config: Config, megatron: TransformerConfig, device: torch.device, vp_stage: int | None
) -> Ministral3Model:
    layers = resolve_layers(config.execution.layers, device)
    attention = resolve_attention(config.execution.attention, device)
    rotary = resolve_rotary(config.execution.rotary, device)
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
    with torch.device(device.type if device.type == "meta" else "cpu"):
        chunk = Ministral3Model(
            config=megatron,
            transformer_layer_spec=block_spec(megatron, layers, attention, rotary, vp_stage),
            vocab_size=config.model.vocab_size,
            padded_vocab_size=padded_vocabulary(config),
            chunk_rows=config.execution.head_chunk_rows,
            head_kernel=resolve_head(config.execution.head, device, megatron.params_dtype),
            max_sequence_length=config.batch.sequence_length,
            vision=_build_vision(config, megatron) if first else None,
            pre_process=first,
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            vp_stage=vp_stage,
        )
    mark_shards(chunk)
    compile_layers(config, layers, chunk)
    return chunk


def _build_vision(config: Config, megatron: TransformerConfig) -> VisionEncoder | None:
    if config.model.vision is None:
        return None
    return VisionEncoder(config.model, megatron.params_dtype, recompute=config.execution.recompute == "full")


def mark_shards(chunk: torch.nn.Module) -> None:
    """Marks the weights of a module that are sharded over tensor-parallel ranks.

    Megatron 0.16 sets the mark only when it initialises weights, which is disabled here. Without the mark its gradient
    norm treats the shards as replicas of rank 0's and counts only that one.
    """
    for module in chunk.modules():
        sharded = isinstance(module, ColumnParallelLinear | RowParallelLinear | VocabParallelEmbedding)
        if sharded and not hasattr(module.weight, "tensor_model_parallel"):
            dimension = 1 if isinstance(module, RowParallelLinear) else 0
            set_tensor_model_parallel_attributes(module.weight, is_parallel=True, dim=dimension, stride=1)
