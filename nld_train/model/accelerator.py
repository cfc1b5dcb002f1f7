"""Optional accelerations on CUDA: FP8, overlapped tensor-parallel communication, compiled parts of layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from nld_train.config.schema import Config
from nld_train.errors import UserError

if TYPE_CHECKING:
    from nld_train.training.stages.kind import StageKind

# Every stage has shapes with and without gradients, and every decode mode has several. Beyond torch's limit of 8, new
# shapes run uncompiled after a warning.
_COMPILED_SHAPES = 64
# Recipe `delayed`: the scale follows from the largest value (amax) of the last steps. Transformer Engine's defaults.
_AMAX_HISTORY = {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}


def accelerator_settings(config: Config, layers: str) -> dict[str, Any]:
    """Fields of Megatron's configuration for `execution.fp8` and `parallel.overlap_tensor`.

    Args:
        config: the run.
        layers: `transformer_engine` or `local`, as resolved.

    Raises:
        UserError: one of them is set without Transformer Engine's layers.
    """
    execution = config.execution
    settings: dict[str, Any] = {}
    if execution.fp8 != "none":
        _require_transformer_engine(f"execution.fp8={execution.fp8}", layers, "execution.fp8=none")
        settings = {"fp8": execution.fp8, "fp8_recipe": execution.fp8_recipe}
        settings |= _AMAX_HISTORY if execution.fp8_recipe == "delayed" else {}
    if config.parallel.overlap_tensor:
        _require_transformer_engine("parallel.overlap_tensor=true", layers, "parallel.overlap_tensor=false")
        settings["tp_comm_overlap"] = True
    return settings


def _require_transformer_engine(setting: str, layers: str, otherwise: str) -> None:
    if layers != "transformer_engine":
        raise UserError(
            f"{setting}: needs Transformer Engine's layers on CUDA, and the layers here are local; set {otherwise}"
        )


def forget_pending_amaxes(chunks: Iterable[torch.nn.Module]) -> None:
    """Forgets what passes without gradients have left for the next scales of FP8, in the recipe `delayed`.

    Transformer Engine notes the largest values of every forward pass in the first row of a module's history. A step
    reduces that row over ranks and takes it into the scales; a validation between two steps does not, so its values
    would reach the scales with the next step: training would depend on when it is validated, and a checkpoint would
    have the row of one rank alone.

    Args:
        chunks: this rank's part of the model.
    """
    for module in (module for chunk in chunks for module in chunk.modules()):
        for scaling in getattr(module, "fp8_meta", {}).values():
            history = getattr(scaling, "amax_history", None)
            if history is not None:
                history[0].zero_()


# The shape of the buffers that exist.
_buffer_shape: list[int] | None = None


def make_overlap_buffers(config: Config, kind: StageKind) -> None:
    """Allocates the buffers of overlapped tensor-parallel communication for the streams of a stage.

    Those for streams of the same length stay; others are freed first. Transformer Engine's layers look their buffers up
    by name in every pass, so that layers built with the buffers of one stage use those of the next.

    Args:
        config: the run.
        kind: of the stage; its streams have one length.
    """
    global _buffer_shape
    positions = config.batch.micro_size * max(kind.stream_lengths(config.batch.sequence_length))
    shape = [positions // config.parallel.context, config.model.hidden_size]
    if shape == _buffer_shape:
        return
    destroy_overlap_buffers()
    from transformer_engine.pytorch.module.base import initialize_ub

    _buffer_shape = shape  # also if the next line fails half-way
    initialize_ub(
        shape=shape,
        tp_size=config.parallel.tensor,
        use_fp8=config.execution.fp8 != "none",
        bootstrap_backend="nccl",
    )


def destroy_overlap_buffers() -> None:
    """Frees the buffers, if there are any: the next job of a sweep has other groups and perhaps other shapes."""
    global _buffer_shape
    if _buffer_shape is None:
        return
    from transformer_engine.pytorch.module.base import destroy_ub

    destroy_ub()
    _buffer_shape = None


@contextmanager
def without_tensor_overlap(chunks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside the context the layers communicate without the buffers, which take passes of a training step's shape only.

    Transformer Engine's linear layers read their flags of overlap (`ub_overlap_ag_fprop` and the like) in every
    forward pass; with all of them off they gather and scatter tensors of any length through NCCL. Layers that have no
    such flags are left alone.
    """
    modules = [module for chunk in chunks for module in chunk.modules()]
    flags = [(module, name) for module in modules for name in _overlap_flags(module)]
    for module, name in flags:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name in flags:
            setattr(module, name, True)


def _overlap_flags(module: torch.nn.Module) -> list[str]:
    return [name for name, value in vars(module).items() if name.startswith("ub_") and value is True]


def compile_layers(config: Config, layers: str, chunk: torch.nn.Module) -> None:
    """Compiles norms and MLPs in place, for the key `execution.compile`; attention has its own kernels.

    Raises:
        UserError: the layers are Transformer Engine's.
    """
    mode = config.execution.compile
    if mode == "none":
        return
    if layers == "transformer_engine":
        raise UserError(f"execution.compile={mode}: is for local layers; set execution.layers=local or compile=none")
    # Lengths are fixed in a stage; a second stage or a decode step compiles again. All layers share compiled code.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED_SHAPES)
    compiled = partial(torch.nn.Module.compile, dynamic=False, mode=mode)
    for layer in chunk.decoder.layers:  # type: ignore[union-attr]
        for part in (layer.input_layernorm, layer.pre_mlp_layernorm, layer.mlp):
            compiled(part)
