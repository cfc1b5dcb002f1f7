"""Keys of a run around the training: name, starting weights, checkpoints, measurements, logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, Lt

from nld_train.config.schema.ranges import Count, CountOrZero, Fraction, Positive

DecodingMode = Literal["ar", "diffusion", "linear", "quadratic"]
CudaGraphs = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class RunConfig:
    """Name, folder and extent of the run."""

    name: Annotated[str, "Name of the run in logs and in Weights & Biases."]
    dir: Annotated[
        str,
        "Folder of everything that a run writes: checkpoints, metrics.jsonl, run.log, summary.json, report.png. "
        "Made when missing. The same command again continues from the latest checkpoint here. In a sweep (--multirun) "
        "each job gets a folder of its own below it, named after the keys that the sweep varies; so is its run.name.",
    ]
    # Random generators take seeds of 64 bits, and Megatron adds a rank to its own.
    seed: Annotated[
        int, Ge(0), Lt(2**63), "Seed of the starting weights, of the order of the samples and of the noise."
    ]
    stages: Annotated[
        tuple[str, ...], "Stages that run, in this order. Each must be defined under `stages`; none twice."
    ]
    hooks: Annotated[
        tuple[str, ...],
        "What runs between two optimizer steps, in this order: validation (held-out losses), decoding (of held-out "
        "prompts), or another hook as MODULE:CLASS. None twice. Each has its own settings for when it runs.",
    ]
    max_steps: Annotated[
        Count | None,
        "Number of optimizer steps, over the whole run, after which it saves and stops; null: run to the end. "
        "Changes no schedule: a stopped run can continue with a larger value as if it had never stopped.",
    ]
    dry: Annotated[
        bool | Literal["build"],
        "false: train. true: print the plan and exit, without a GPU and without Megatron. build: build the model on "
        "the meta device, under a fake process group of the full layout, and print its counted sizes.",
    ]
    plan_world_size: Annotated[
        Count, "Number of processes (one per GPU) that the dry modes plan for when no launcher sets it."
    ]


@dataclass(frozen=True)
class InitConfig:
    """The weights a run starts from."""

    checkpoint: Annotated[
        str | None,
        "Starting weights: a checkpoint of this project, a run directory, whose newest one is taken, a Hugging Face "
        "directory, or hub:ORG/NAME (hub:ORG/NAME@REVISION), a model on the Hugging Face Hub, out of its local cache "
        "where it is there; null: random weights. Read only where run.dir has no checkpoint to continue from.",
    ]
    vision: Annotated[
        str | None,
        "With model.vision: a Hugging Face directory with the vision tower and projector that the model starts with, "
        "instead of those of checkpoint, which then may be a text model; such as the multimodal Ministral3 that the "
        "text model was trained from. null: those of checkpoint.",
    ] = None
    required: Annotated[bool, "Refuse to train from random weights, for experiments that continue a trained model."] = (
        False
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved, how, and which checkpoints are kept."""

    every: Annotated[
        Count,
        "Optimizer steps between two checkpoints; one is also written at the end of each stage and when a run stops.",
    ]
    asynchronous: Annotated[
        bool,
        "true: write in the background, from a snapshot in host memory (its size: docs/training.md). false: training "
        "waits until everything is written.",
    ]
    keep_last: Annotated[Count | None, "How many of the newest checkpoints are kept; null: all."]
    keep_every: Annotated[
        Count | None,
        "Checkpoints whose step is a multiple of this are kept for good; null: none. Those that end a stage always "
        "are.",
    ]


@dataclass(frozen=True)
class ValidationConfig:
    """Losses on held-out data with fixed noise."""

    every: Annotated[CountOrZero, "Optimizer steps between two validations, counted in the stage; 0: never."]
    samples: Annotated[Count, "Samples of a validation. Divisible by batch.micro_size x the data-parallel size."]
    levels: Annotated[
        tuple[Annotated[float, Interval(gt=0, le=1)], ...],
        "Noise levels at which the diffusion loss is measured, one after another. None twice; at least one for a "
        "joint stage.",
    ]


@dataclass(frozen=True)
class EvaluationConfig:
    """Decoding of held-out prompts during a joint, sft or drafter stage."""

    every: Annotated[
        CountOrZero,
        "Optimizer steps between two decodings, counted in the stage; there is one at its end too. 0: never.",
    ]
    modes: Annotated[
        tuple[DecodingMode, ...],
        "Decode modes of a joint or sft stage; always with ar, since agreement is measured against it, but [diffusion] "
        "alone with diffusion.clean=block. None twice. A drafter stage decodes with ar, linear, and linear with the "
        "adapter.",
    ]
    prompts: Annotated[
        Count,
        "Number of prompts, always the same: the beginnings of held-out documents, or held-out conversations up to "
        "their last answer, and no more than there are.",
    ]
    prompt_tokens: Annotated[
        Count,
        "Length of a prompt in tokens, less where a document is shorter. Conversations are whole; those without room "
        "for max_new_tokens are left out.",
    ]
    max_new_tokens: Annotated[
        Count, "Most new tokens of a prompt. With prompt_tokens at most model.max_position_embeddings."
    ]
    block_length: Annotated[
        Count,
        "Tokens per block of diffusion and linear self-speculation, drafts per cycle of quadratic. A drafter stage "
        "takes its adapter's instead.",
    ]
    threshold: Annotated[
        Fraction, "Diffusion commits tokens that are at least this probable, and always the most probable one."
    ]
    exact_match: Annotated[
        bool,
        "true: report the share of conversations whose last answer each mode gives exactly, for held-out questions "
        "that have one right answer.",
    ] = False
    cuda_graphs: Annotated[
        CudaGraphs,
        "Decode cycles as CUDA graphs, whose memory is freed after each decoding: auto where they are possible, on or "
        "an error, off never. No difference on a CPU, where on is refused. Not measured on a GPU.",
    ] = "auto"


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases."""

    mode: Annotated[
        Literal["offline", "online", "disabled"], "offline: written below run.dir, to be sent by `wandb sync`."
    ]
    project: Annotated[str, "Project in Weights & Biases."]
    entity: Annotated[str | None, "Team or user in Weights & Biases; null: the account's own."]


@dataclass(frozen=True)
class LoggingConfig:
    """What is printed and logged; `metrics.jsonl` always has every step."""

    every: Annotated[
        Count,
        "Optimizer steps between two lines in run.log and, where that is no terminal, on standard output. A terminal "
        "shows the current step as a live line.",
    ]
    peak_tflops: Annotated[
        Positive | None,
        "Dense bf16 peak of one device in TFLOP/s, for the FLOP utilisation; null: the known value of some devices "
        "(H100: 989), else no utilisation is reported.",
    ]
    wandb: WandbConfig
    tensorboard: Annotated[
        bool,
        "Also write the numbers of every step to <run.dir>/tensorboard. Needs the package tensorboard (the extra "
        "`tensorboard`).",
    ] = False
