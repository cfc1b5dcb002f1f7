"""Keys of the layout over processes and of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from nld_train.config.schema.ranges import Count, CountOrZero

Recomputed = Literal["core_attn", "mlp"]


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is divided over processes; the rest of the world size is data parallelism."""

    tensor: Annotated[
        Count, "Tensor-parallel size: processes that share each layer. Divides both head counts and the MLP width."
    ]
    pipeline: Annotated[
        Count, "Pipeline-parallel size: processes that share the stack of layers. Divides the number of layers."
    ]
    virtual_pipeline: Annotated[
        int | None,
        Ge(2),
        "Model chunks of each pipeline process (interleaved schedule); null: one. Needs pipeline > 1 and a number of "
        "micro-batches divisible by pipeline.",
    ]
    sequence: Annotated[
        bool, "Sequence parallelism: also divides the sequence between layers, which saves memory. Needs tensor > 1."
    ]
    context: Annotated[
        Count,
        "Context-parallel size: processes that share each sample. batch.sequence_length must be a multiple of twice "
        "this number; not for a stage that trains an adapter.",
    ]
    overlap_grad_reduce: Annotated[
        bool, "Reduce gradients over data-parallel processes during the backward pass. Speed only."
    ]
    overlap_param_gather: Annotated[
        bool,
        "Gather updated parameters during the next forward pass. Speed only; needs overlap_grad_reduce.",
    ]
    overlap_tensor: Annotated[
        bool,
        "Overlap tensor-parallel communication with matrix products. Speed only; needs Transformer Engine's layers, "
        "sequence=true, and stages none of which trains an adapter. Decoding during training runs without it. Not "
        "measured.",
    ] = False


@dataclass(frozen=True)
class ProfileConfig:
    """A profile of some optimizer steps, into `<run.dir>/profile`."""

    first_step: Annotated[
        Count | None,
        "First optimizer step of the run that is profiled; null: no profile, and no cost. The first few compile and "
        "allocate; take a later one.",
    ] = None
    last_step: Annotated[Count | None, "Last step that is profiled; null: first_step alone."] = None
    ranks: Annotated[tuple[CountOrZero, ...], "Processes that are profiled. At least one, none twice."] = (0,)
    trace: Annotated[
        bool,
        "Operators and kernels over time, from torch's profiler: rank_N...pt.trace.json.gz, for Perfetto or "
        "TensorBoard.",
    ] = True
    memory: Annotated[
        bool,
        "A snapshot of all allocations with their Python stacks: rank_N...memory.pickle, for torch's memory "
        "visualiser. Needs CUDA.",
    ] = False
    nvtx: Annotated[
        bool,
        "NVTX ranges with the names of a step's parts and of Megatron's layers, for `nsys profile "
        "--capture-range=cudaProfilerApi`. Needs CUDA.",
    ] = False


@dataclass(frozen=True)
class ExecutionConfig:
    """Which implementation computes what; nothing here changes the mathematics."""

    device: Annotated[Literal["auto", "cuda", "cpu"], "auto: cuda where it is available."]
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        "Number format of forward and backward passes. auto: bf16 on cuda, fp32 on the CPU, which has no other.",
    ]
    layers: Annotated[
        Literal["auto", "transformer_engine", "local"],
        "Implementation of the layers. transformer_engine: CUDA only; local: Megatron's own; auto: the former where "
        "it is installed, on cuda.",
    ]
    attention: Annotated[
        str,
        "auto, or a name of `config.attention_backends.ATTENTION_BACKENDS`: attention over the two streams. flex: one "
        "block-sparse kernel, for CUDA; split: a causal kernel for the clean half and a block-sparse one for the "
        "noisy half, for CUDA; decomposed: the noisy half in two products as well, its own blocks and the earlier "
        "clean ones, merged; chunked: exact pieces in plain torch, for the CPU; dense: the whole mask, for "
        "comparison; auto: flex on cuda, chunked on the CPU. split and decomposed need parallel.context=1. Which is "
        "fastest on a GPU was not measured (python -m benchmarks.attention).",
    ]
    rotary: Annotated[
        Literal["auto", "compiled", "plain"],
        "The rotary embedding and the query scale in training and validation. compiled: one kernel through "
        "torch.compile, rounded once instead of after each operation; plain: operations of torch; auto: compiled on "
        "cuda, plain on the CPU. Not measured on a GPU.",
    ]
    fp8: Annotated[
        Literal["none", "hybrid", "e4m3"],
        "Matrix products of the layers in 8 bits. hybrid: e4m3, and e5m2 for gradients. Needs Transformer Engine's "
        "layers, evaluation.every=0, and a number of positions per process that fp8_recipe allows. Not measured.",
    ]
    fp8_recipe: Annotated[
        Literal["tensorwise", "delayed", "blockwise", "mxfp8"],
        "How FP8 numbers are scaled; read with fp8 only. tensorwise: from the tensor itself; delayed: from earlier "
        "ones (both need a multiple of 16 positions per process); blockwise: by blocks of 128 (a multiple of 128); "
        "mxfp8: by blocks of 32 (a multiple of 32), on Blackwell and later. Not measured.",
    ]
    compile: Annotated[
        Literal["none", "default", "reduce-overhead"],
        "torch.compile over norms and MLPs of Megatron's local layers; reduce-overhead: also as CUDA graphs. Refused "
        "with Transformer Engine's layers, which are fused already. Each new length is compiled once, those of "
        "decoding too (evaluation.every=0 has none). Not measured on a GPU.",
    ]
    head: Annotated[
        Literal["auto", "chunked", "fused", "transformer_engine"],
        "Cross-entropy of a chunk of logits. chunked: operations of torch; fused: the same compiled (Megatron's fused "
        "cross-entropy), with gradients in bf16, for precision=bf16; transformer_engine: its kernel, which computes "
        "the gradient with the loss, for CUDA; auto: chunked. Which is fastest on a GPU was not measured (python -m "
        "benchmarks.head).",
    ]
    head_chunk_rows: Annotated[Count, "Rows of logits computed at a time in the loss; fewer rows take less memory."]
    recompute: Annotated[
        Literal["none", "selective", "full"],
        "What the backward pass computes again instead of storing. selective: recompute_modules; full: whole layers.",
    ]
    recompute_modules: Annotated[
        tuple[Recomputed, ...],
        "Parts of a layer that recompute=selective computes again: core_attn (attention), mlp. At least one.",
    ]
    recompute_layers: Annotated[Count, "Layers per stored activation with recompute=full."]
    # Gloo counts milliseconds in 32 bits.
    timeout_minutes: Annotated[
        float,
        Interval(ge=0.01, le=10080),
        "Minutes, of which fractions count, after which a collective operation times out; at most a week.",
    ]
    fault_tolerance: Annotated[
        bool,
        "Send heartbeats to the monitor that NVIDIA's ft_launcher starts beside each process, and which ends and "
        "restarts a run that hangs. Needs the package nvidia-resiliency-ext and that launcher.",
    ] = False
    profile: ProfileConfig = ProfileConfig()
