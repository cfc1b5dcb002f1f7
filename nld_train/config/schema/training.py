"""Keys of the training itself: data, noise, stages, batch, optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Interval

from nld_train.config.schema.ranges import BelowOne, Count, CountOrZero, Fraction, NotNegative, Positive

Averaging = Literal["global", "contributing", "masked", "sequence"]
Documents = Literal["isolate", "ignore"]
CleanVisibility = Literal["causal", "block"]
TrainedWeights = Literal["all", "text", "projector"]

# Held-out samples draw their noise under this name, as those of a stage do under the stage's. No stage may have it.
VALIDATION = "validation"


@dataclass(frozen=True)
class SourceConfig:
    """One prepared token set and its weight in a blend."""

    prefix: Annotated[str, "Path of PREFIX.bin and PREFIX.idx, without the ending."]
    weight: Annotated[Positive, "How often samples are drawn from it, relative to the other weights."]


@dataclass(frozen=True)
class DataConfig:
    """The data sets, and how documents are packed into samples."""

    train: Annotated[
        tuple[SourceConfig, ...],
        "Training data: a list of prepared token sets. Must not be empty, except in a dry run.",
    ]
    validation: Annotated[
        tuple[SourceConfig, ...],
        "Held-out data. May be empty where validation.every and evaluation.every are 0.",
    ]
    tokenizer: Annotated[
        str | None,
        "Directory of the tokenizer that prepared the data; compared with the data's manifest, the model's token ids "
        "and the tokenizer of init.checkpoint. null: the one that the manifest names, which init.checkpoint need not "
        "have.",
    ]
    documents: Annotated[
        Documents,
        "isolate: attention, positions and blocks stay inside a document. ignore: packed without borders, as in the "
        "paper's public code.",
    ]
    workers: Annotated[
        CountOrZero,
        "Worker processes per training process that prepare batches; 0: the training process does. Changes no sample.",
    ]
    long_conversations: Annotated[
        Literal["leave_out", "shorten"],
        "Conversations of more than batch.sequence_length tokens in an sft stage. leave_out: not trained on; shorten: "
        "whole turns are removed from the front until the rest fits.",
    ] = "leave_out"


@dataclass(frozen=True)
class DiffusionConfig:
    """The noisy stream: its blocks and its noise (docs/method.md, "Noise").

    `schedule` is a name of `masking.schedule.SCHEDULES`.
    """

    block_size: Annotated[
        Count,
        "Tokens of a block, counted from the start of each document (in an sft stage: see blocks). Need not divide the "
        "sequence length. Decoding calls the same quantity block_length.",
    ]
    epsilon: Annotated[BelowOne, "Smallest masking probability; it bounds the loss weight 1/p."]
    levels: Annotated[
        Literal["independent", "stratified", "shared"],
        'How noise levels are drawn. independent: each for itself ("DP-rank-varying mask ratio"); stratified: spread '
        "evenly over the global batch, which has less variance; shared: one level for the whole global batch.",
    ]
    level_scope: Annotated[
        Literal["sequence", "block"],
        "The unit that has one noise level: a sequence, as in the paper, or a block, which needs levels=independent.",
    ]
    schedule: Annotated[
        str,
        "How the masking probability p follows from a noise level t ~ U(0, 1). linear: p = (1 - epsilon) t + epsilon.",
    ] = "linear"
    blocks: Annotated[
        Literal["answer", "document"],
        "Where the blocks of an sft stage are counted from. answer: from the start of each answer, as decoding does; "
        "document: from the start of the conversation, as the paper's public code does.",
    ] = "answer"
    fill: Annotated[
        bool,
        "Whether the last block of each answer of an sft stage is filled with end tokens, as all blocks are whole in "
        "decoding.",
    ] = True
    clean: Annotated[
        CleanVisibility,
        "What clean tokens see in stages with a noisy stream. causal: the tokens before them, as in an AR forward; "
        "block: also the rest of their own block, an ablation of the paper. That shows AR rows their labels: such "
        "stages need ar_weight=0. Stages without a noisy stream are causal.",
    ] = "causal"


@dataclass(frozen=True)
class ScheduleConfig:
    """Warmup-stable-decay schedule of the learning rate."""

    learning_rate: Annotated[Positive, "Highest learning rate: reached after warmup, constant until the decay."]
    final_learning_rate: Annotated[
        float, "Learning rate of the last step, from 0 to learning_rate; above 0 with decay_style=exponential."
    ]
    warmup_fraction: Annotated[Fraction, "Fraction of the stage's steps over which the rate rises from 0."]
    decay_fraction: Annotated[
        Fraction,
        "Fraction of the stage's steps, at its end, over which the rate falls. With warmup_fraction at most 1.",
    ]
    decay_style: Annotated[Literal["linear", "cosine", "exponential", "minus_sqrt"], "Shape of the decay."]


@dataclass(frozen=True)
class AdapterConfig:
    """The drafter adapter of linear self-speculation and its loss (docs/method.md, "Drafter adapter")."""

    rank: Annotated[Count, "Rank of the low-rank change of each matrix."]
    lora_alpha: Annotated[Positive, "The change is multiplied by lora_alpha / rank."]
    block_size: Annotated[
        int, Ge(2), "Tokens of a block, the seed included. The block_length with which decoding drafts is the same."
    ]
    temperature: Annotated[Positive, "Softmax temperature at which the draft distribution approaches the target's."]
    top_k: Annotated[
        Count, "Number of most likely tokens, of draft and of target each, to which the loss is restricted."
    ]
    greedy_share: Annotated[Fraction, "Fraction of blocks that are drafted greedily; the others are sampled."]


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


@dataclass(frozen=True)
class LoraConfig:
    """A LoRA in place of the model's own weights (docs/training.md, "LoRA")."""

    rank: Annotated[Count, "Rank of the low-rank change of each matrix."]
    lora_alpha: Annotated[Positive, "The change is multiplied by lora_alpha / rank."]
    targets: Annotated[tuple[LoraTarget, ...], "The linear layers that are changed, in every layer. At least one."] = (
        LORA_TARGETS
    )


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run: what kind of training, how many tokens, which data, which schedule."""

    kind: Annotated[
        str,
        "What the stage trains. ar: the AR loss; joint: AR and diffusion loss; sft: the same on the answers of "
        "conversations; drafter: the drafter adapter alone.",
    ]
    tokens: Annotated[
        int,
        Gt(0),
        "Tokens to train on, rounded up to whole steps; 1e9 is read as an integer. Noisy copies do not count.",
    ]
    alpha: Annotated[
        NotNegative,
        "Weight of the diffusion loss. Above 0 with kind=joint, 0 with ar and drafter; with sft 0 trains the AR loss "
        "alone, without a noisy stream.",
    ]
    averaging: Annotated[Averaging, "What the losses of a global batch are divided by. global with kind=drafter."]
    schedule: ScheduleConfig
    train: Annotated[
        tuple[SourceConfig, ...] | None, "Training data of this stage instead of data.train; null: data.train."
    ] = None
    validation: Annotated[
        tuple[SourceConfig, ...] | None,
        "Held-out data of this stage instead of data.validation; null: data.validation.",
    ] = None
    data_start: Annotated[
        Literal["continue", "beginning"],
        "Where the stage starts in its data. continue: where the previous stage stopped; beginning: at the first "
        "sample.",
    ] = "continue"
    noisy_length: Annotated[
        Count | Literal["auto"],
        "Tokens of the noisy stream of a sample in an sft or drafter stage: the answers' blocks and their fill. auto: "
        "from the share of answers in the training data, in whole 128s. Conversations whose blocks do not fit go to "
        "the next sample; in a drafter stage blocks are left out, and auto is the sequence length for text. Other "
        "kinds take auto only.",
    ] = "auto"
    ar_weight: Annotated[
        NotNegative,
        "Weight of the AR loss. 1, but in ablations: with 0 a joint or sft stage trains diffusion alone. 1 with the "
        "other kinds.",
    ] = 1.0
    adapter: Annotated[
        AdapterConfig | None,
        "The drafter adapter, with kind=drafter, which must be the last stage. null with the other kinds.",
    ] = None
    lora: Annotated[
        LoraConfig | None,
        "null: train all weights. Otherwise these are frozen, and a low-rank change of some is trained, which the next "
        "stage and an export add to them. null with kind=drafter.",
    ] = None
    trained_weights: Annotated[
        TrainedWeights,
        "Which weights of a vision-language model are trained. all: every one; text: not the vision tower and the "
        "projector; projector: the projector alone. all in a model without vision, with a LoRA and with kind=drafter.",
    ] = "all"


@dataclass(frozen=True)
class BatchConfig:
    """How many samples make a step, and how long they are."""

    global_size: Annotated[
        Count, "Samples of one optimizer step over all processes. Divisible by micro_size x the data-parallel size."
    ]
    micro_size: Annotated[
        Count, "Samples of one forward pass of one process. Changes memory and speed, never the result."
    ]
    sequence_length: Annotated[
        Count,
        "Tokens of a sample, without the additional last token, which is only a label. At most "
        "model.max_position_embeddings; a joint stage's forward pass has twice as many positions.",
    ]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and gradient clipping."""

    beta1: Annotated[BelowOne, "Decay of the running mean of gradients."]
    beta2: Annotated[BelowOne, "Decay of the running mean of squared gradients."]
    epsilon: Annotated[float, Interval(gt=0, le=1), "Added to the root of the mean square."]
    weight_decay: Annotated[NotNegative, "Decoupled weight decay of matrices; norms have none."]
    clip_grad: Annotated[
        NotNegative, "Largest norm of the whole gradient; a longer one is scaled down. 0: no clipping."
    ]
    precision_aware: Annotated[
        bool,
        "Megatron's precision-aware optimizer, which allows moments in fewer bits or in host memory; the master "
        "weights stay in float32. Needs CUDA and Transformer Engine's optimizer (2.1 or later), or cpu_offload. Not "
        "measured.",
    ]
    moments: Annotated[
        Literal["fp32", "bf16", "fp16", "fp8"],
        "Number format of both moments. Other than fp32 needs precision_aware=true and cpu_offload=0. Not measured.",
    ]
    cpu_offload: Annotated[
        Fraction,
        "Fraction of the optimizer state that is stored in host memory and updated there. Above 0 it needs CUDA and "
        "precision_aware=true. Not measured.",
    ]
