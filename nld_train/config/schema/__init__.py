"""The settings of a run as frozen dataclasses: one class per Hydra group under `configs/`.

Each field carries its description and, where one number alone decides it, its valid range. `docs/keys.md` lists them.
This package imports no torch, so that a configuration can be read and checked anywhere, in a moment.
"""

from __future__ import annotations

from dataclasses import dataclass

from nld_train.config.schema.execution import ExecutionConfig, ParallelConfig, ProfileConfig, Recomputed
from nld_train.config.schema.model import SIZE_KEYS, ModelConfig, RopeParameters, VisionConfig
from nld_train.config.schema.run import (
    CheckpointConfig,
    CudaGraphs,
    DecodingMode,
    EvaluationConfig,
    InitConfig,
    LoggingConfig,
    RunConfig,
    ValidationConfig,
    WandbConfig,
)
from nld_train.config.schema.training import (
    LORA_TARGETS,
    VALIDATION,
    AdapterConfig,
    Averaging,
    BatchConfig,
    CleanVisibility,
    DataConfig,
    DiffusionConfig,
    Documents,
    LoraConfig,
    OptimizerConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
    TrainedWeights,
)

__all__ = [
    "LORA_TARGETS",
    "SIZE_KEYS",
    "VALIDATION",
    "AdapterConfig",
    "Averaging",
    "BatchConfig",
    "CheckpointConfig",
    "CleanVisibility",
    "Config",
    "CudaGraphs",
    "DataConfig",
    "DecodingMode",
    "DiffusionConfig",
    "Documents",
    "EvaluationConfig",
    "ExecutionConfig",
    "InitConfig",
    "LoggingConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ProfileConfig",
    "Recomputed",
    "RopeParameters",
    "RunConfig",
    "ScheduleConfig",
    "SourceConfig",
    "StageConfig",
    "TrainedWeights",
    "ValidationConfig",
    "VisionConfig",
    "WandbConfig",
]


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
