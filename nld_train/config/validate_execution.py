"""Refuses kernels, precisions and optimizer states that contradict each other or the device.

Settings that depend on installed packages are checked where the model and the optimizer are built.
"""

from __future__ import annotations

from nld_train.config.attention_backends import ATTENTION_BACKENDS, AUTO, names_of
from nld_train.config.checks import refuse_unless
from nld_train.config.schema import Config, ExecutionConfig
from nld_train.config.stage_kinds import running_kinds

# The number of positions per process is a multiple of this, by recipe. Tensor cores need 16; where
# scales belong to blocks, 32 or 128 positions share one, and Transformer Engine quantises whole blocks only.
_FP8_MULTIPLES = {"tensorwise": 16, "delayed": 16, "mxfp8": 32, "blockwise": 128}


def validate_execution(config: Config) -> None:
    """Raise `UserError` for the first key of `execution`, `optimizer` or an overlap that is impossible."""
    _check_optimizer(config)
    execution = config.execution
    if execution.device == "cpu":
        _check_cpu(config)
    _check_attention(config)
    _check_recomputation(execution)
    _check_fp8(config)
    valid = "has no effect with execution.layers=transformer_engine, whose layers are fused already; set none"
    compiled = execution.compile != "none" and execution.layers == "transformer_engine"
    refuse_unless(not compiled, "execution.compile", execution.compile, valid)
    _check_lora(config)
    _check_tensor_overlap(config)


def validate_profile(config: Config, world_size: int) -> None:
    """Raise `UserError` for the first key of `execution.profile` that is impossible for `world_size` processes."""
    profile, key = config.execution.profile, "execution.profile"
    first, last = profile.first_step, profile.last_step
    if first is None:
        valid = f"has no effect without {key}.first_step; set that too"
        refuse_unless(last is None, f"{key}.last_step", last, valid)
        return
    refuse_unless(last is None or last >= first, f"{key}.last_step", last, f"must be at least {key}.first_step={first}")
    listed = f"[{','.join(map(str, profile.ranks))}]"
    refuse_unless(len(profile.ranks) > 0, f"{key}.ranks", listed, "must name at least one process")
    refuse_unless(len(set(profile.ranks)) == len(profile.ranks), f"{key}.ranks", listed, "must name each only once")
    valid = f"must be below the number of processes, {world_size}"
    refuse_unless(max(profile.ranks) < world_size, f"{key}.ranks", listed, valid)
    valid = f"{key}.memory and {key}.nvtx are false as well; set one to true, or {key}.first_step=null"
    refuse_unless(profile.trace or profile.memory or profile.nvtx, f"{key}.trace", False, valid)
    for name in ("memory", "nvtx"):
        impossible = getattr(profile, name) and config.execution.device == "cpu"
        refuse_unless(not impossible, f"{key}.{name}", True, "needs CUDA, and execution.device=cpu; set false")


def _check_lora(config: Config) -> None:
    """Refuses kernels that would not see the changes of the linear layers, or in which they have no part."""
    name = next((name for name in config.run.stages if config.stages[name].lora is not None), None)
    if name is None:
        return
    compile_mode = config.execution.compile
    valid = f"must be none: stage {name!r} has a LoRA, which compiled MLPs would leave out"
    refuse_unless(compile_mode == "none", "execution.compile", compile_mode, valid)
    valid = f"must be false: stage {name!r} has a LoRA, whose products have no buffers"
    refuse_unless(not config.parallel.overlap_tensor, "parallel.overlap_tensor", True, valid)


def _check_cpu(config: Config) -> None:
    execution, optimizer = config.execution, config.optimizer
    precision, layers = execution.precision, execution.layers
    valid = "must be fp32 or auto with execution.device=cpu: the CPU trains in fp32"
    refuse_unless(precision != "bf16", "execution.precision", precision, valid)
    valid = "must be local or auto with execution.device=cpu: Transformer Engine needs CUDA"
    refuse_unless(layers != "transformer_engine", "execution.layers", layers, valid)
    valid = "must be none with execution.device=cpu: FP8 needs CUDA and Transformer Engine"
    refuse_unless(execution.fp8 == "none", "execution.fp8", execution.fp8, valid)
    valid = "must be none or default with execution.device=cpu: CUDA graphs need CUDA"
    refuse_unless(execution.compile != "reduce-overhead", "execution.compile", execution.compile, valid)
    valid = "must be false with execution.device=cpu: it is Transformer Engine's optimizer, or needs cpu_offload"
    refuse_unless(not optimizer.precision_aware, "optimizer.precision_aware", True, valid)


def _check_attention(config: Config) -> None:
    """Refuses a backend that does not support device, layout or stages; `auto` is resolved to one that does."""
    key, name, context = "execution.attention", config.execution.attention, config.parallel.context
    if name == AUTO:
        return
    refuse_unless(name in ATTENTION_BACKENDS, key, name, f"must be one of {', '.join((AUTO, *ATTENTION_BACKENDS))}")
    backend = ATTENTION_BACKENDS[name]
    if config.execution.device == "cpu":
        valid = f"needs CUDA; with execution.device=cpu use {names_of(lambda other: 'cpu' in other.trains_on)}"
        refuse_unless("cpu" in backend.runs_on, key, name, valid)
        valid = (
            f"must be {names_of(lambda other: 'cpu' in other.trains_on)}, or auto, with execution.device=cpu: there "
            f"{name} has no backward pass"
        )
        refuse_unless("cpu" in backend.trains_on, key, name, valid)
    valid = f"does not support parallel.context={context}; use {names_of(lambda other: other.context_parallel)}"
    refuse_unless(context == 1 or backend.context_parallel, key, name, valid)
    drafter = next((stage for stage, kind in running_kinds(config).items() if kind.trains_adapter), None)
    valid = (
        f"does not support the blocks of drafter stage {drafter!r}; use {names_of(lambda other: other.causal_blocks)}"
    )
    refuse_unless(drafter is None or backend.causal_blocks, key, name, valid)


def _check_recomputation(execution: ExecutionConfig) -> None:
    modules = execution.recompute_modules
    listed = f"[{','.join(modules)}]"
    refuse_unless(len(modules) > 0, "execution.recompute_modules", listed, "must name at least one, e.g. [core_attn]")
    once = len(set(modules)) == len(modules)
    refuse_unless(once, "execution.recompute_modules", listed, "must name each part only once")


def _check_fp8(config: Config) -> None:
    execution, parallel, batch = config.execution, config.parallel, config.batch
    if execution.fp8 == "none":
        return
    valid = "needs Transformer Engine's layers; set execution.layers=transformer_engine or execution.fp8=none"
    refuse_unless(execution.layers != "local", "execution.fp8", execution.fp8, valid)
    valid = "must be bf16 or auto with execution.fp8: what is not in 8 bits is in bf16"
    refuse_unless(execution.precision != "fp32", "execution.precision", execution.precision, valid)
    valid = "must be 0 with execution.fp8: decoding has too few rows for FP8 products; decode with nld-decode"
    refuse_unless(config.evaluation.every == 0, "evaluation.every", config.evaluation.every, valid)
    parts = parallel.context * (parallel.tensor if parallel.sequence else 1)
    positions = batch.micro_size * batch.sequence_length // parts
    multiple = _FP8_MULTIPLES[execution.fp8_recipe]
    valid = (
        f"with batch.micro_size={batch.micro_size} puts {positions} positions on a process; execution.fp8_recipe="
        f"{execution.fp8_recipe} needs a multiple of {multiple}"
    )
    refuse_unless(positions % multiple == 0, "batch.sequence_length", batch.sequence_length, valid)


def _check_tensor_overlap(config: Config) -> None:
    if not config.parallel.overlap_tensor:
        return
    key = "parallel.overlap_tensor"
    refuse_unless(config.parallel.sequence, key, True, "needs parallel.sequence=true")
    valid = "needs Transformer Engine's layers on CUDA; set false"
    elsewhere = config.execution.device == "cpu" or config.execution.layers == "local"
    refuse_unless(not elsewhere, key, True, valid)
    for name, kind in running_kinds(config).items():
        lengths = set(kind.stream_lengths(config.batch.sequence_length))
        valid = f"has buffers of one length, but a step of stage {name!r} has passes of different ones; set false"
        refuse_unless(len(lengths) == 1, key, True, valid)


def _check_optimizer(config: Config) -> None:
    optimizer = config.optimizer
    offloads, aware = optimizer.cpu_offload > 0, optimizer.precision_aware
    valid = "needs optimizer.precision_aware=true: Megatron offloads the state of that optimizer only"
    refuse_unless(aware or not offloads, "optimizer.cpu_offload", optimizer.cpu_offload, valid)
    valid = "must be fp32 with optimizer.precision_aware=false or optimizer.cpu_offload above 0"
    plain = offloads or not aware
    refuse_unless(optimizer.moments == "fp32" or not plain, "optimizer.moments", optimizer.moments, valid)
