"""The settings of a run as frozen dataclasses: one class per Hydra group under `configs/`.

Every key is explained where its default stands, in the YAML files. This module imports no torch, so that a
configuration can be read and checked anywhere, in a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Averaging = Literal["global", "contributing", "masked", "sequence"]
Documents = Literal["isolate", "ignore"]
Recomputed = Literal["core_attn", "mlp"]
DecodingMode = Literal["ar", "diffusion", "linear", "quadratic"]

# Held-out samples draw their noise under this name, as those of a stage do under the stage's. No stage may have it.
VALIDATION = "validation"

# Keys of `ModelConfig` that are sizes: integers of 1 or more.
SIZE_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class RunConfig:
    """What this run is called, where it lives, and how far it goes."""

    name: str
    dir: str
    seed: int
    stages: tuple[str, ...]
    max_steps: int | None
    dry: bool | Literal["build"]
    plan_world_size: int


@dataclass(frozen=True)
class InitConfig:
    """The weights a run starts from."""

    checkpoint: str | None
    required: bool = False


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding, under the names of a Ministral3 `config.json`."""

    rope_type: str
    rope_theta: float
    factor: float | None
    original_max_position_embeddings: int | None
    beta_fast: float | None
    beta_slow: float | None
    mscale: float | None
    mscale_all_dim: float | None
    llama_4_scaling_beta: float | None


@dataclass(frozen=True)
class ModelConfig:
    """A Ministral3 text decoder, under the names of its `config.json` (reference section 5)."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    initializer_range: float
    mask_token_id: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    rope_parameters: RopeParameters


@dataclass(frozen=True)
class SourceConfig:
    """One prepared token set (`PREFIX.bin` and `PREFIX.idx`) and its share of a blend."""

    prefix: str
    weight: float


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how documents are packed into samples."""

    train: tuple[SourceConfig, ...]
    validation: tuple[SourceConfig, ...]
    tokenizer: str | None
    documents: Documents
    workers: int


@dataclass(frozen=True)
class DiffusionConfig:
    """The noisy stream: its blocks and its noise (docs/method.md, "Noise").

    `schedule` is a name of `masking.schedule.SCHEDULES`.
    """

    block_size: int
    epsilon: float
    levels: Literal["independent", "stratified", "shared"]
    level_scope: Literal["sequence", "block"]
    schedule: str = "linear"


@dataclass(frozen=True)
class ScheduleConfig:
    """Warmup-stable-decay schedule of the learning rate."""

    learning_rate: float
    final_learning_rate: float
    warmup_fraction: float
    decay_fraction: float
    decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"]


@dataclass(frozen=True)
class AdapterConfig:
    """The drafter adapter of linear self-speculation and its loss (reference section 7)."""

    rank: int
    alpha: float
    block_length: int
    temperature: float
    top_k: int
    greedy_share: float


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run: how many tokens, which objective, which data, which schedule.

    A stage with an `adapter` trains that and leaves the model as it is.
    """

    tokens: int
    alpha: float
    averaging: Averaging
    schedule: ScheduleConfig
    train: tuple[SourceConfig, ...] | None
    data_start: Literal["continue", "beginning"]
    adapter: AdapterConfig | None = None


@dataclass(frozen=True)
class BatchConfig:
    """How many samples make a step, and how long they are."""

    global_size: int
    micro_size: int
    sequence_length: int


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is cut over processes; what is left of the world is data-parallel."""

    tensor: int
    pipeline: int
    virtual_pipeline: int | None
    sequence: bool
    context: int
    overlap_grad_reduce: bool
    overlap_param_gather: bool
    overlap_tensor: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and gradient clipping."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_grad: float
    precision_aware: bool
    moments: Literal["fp32", "bf16", "fp16", "fp8"]
    cpu_offload: float


@dataclass(frozen=True)
class ExecutionConfig:
    """Which implementation computes what; nothing here changes the mathematics."""

    device: Literal["auto", "cuda", "cpu"]
    precision: Literal["auto", "bf16", "fp32"]
    layers: Literal["auto", "transformer_engine", "local"]
    attention: str  # auto, or a name of `config.attention_backends.ATTENTION_BACKENDS`
    fp8: Literal["none", "hybrid", "e4m3"]
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise", "mxfp8"]
    compile: Literal["none", "default", "reduce-overhead"]
    head_chunk_rows: int
    recompute: Literal["none", "selective", "full"]
    recompute_modules: tuple[Recomputed, ...]
    recompute_layers: int
    timeout_minutes: float


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved, how, and which savings are kept."""

    every: int
    asynchronous: bool
    keep_last: int | None
    keep_every: int | None


@dataclass(frozen=True)
class ValidationConfig:
    """Losses on held-out data with fixed noise."""

    every: int
    samples: int
    levels: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationConfig:
    """Decoding of held-out prompts during a joint or drafter stage."""

    every: int
    modes: tuple[DecodingMode, ...]
    prompts: int
    prompt_tokens: int
    max_new_tokens: int
    block_length: int
    threshold: float


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None


@dataclass(frozen=True)
class LoggingConfig:
    """What is shown, and how often."""

    every: int
    peak_tflops: float | None
    wandb: WandbConfig


@dataclass(frozen=True)
class Config:
    """A whole run."""

    run: RunConfig
    init: InitConfig
    model: ModelConfig
    data: DataConfig
    diffusion: DiffusionConfig
    stages: dict[str, StageConfig]
    batch: BatchConfig
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    execution: ExecutionConfig
    checkpoint: CheckpointConfig
    validation: ValidationConfig
    evaluation: EvaluationConfig
    logging: LoggingConfig
