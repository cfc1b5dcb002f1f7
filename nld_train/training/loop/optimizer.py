"""AdamW through Megatron's distributed optimizer, and its warmup-stable-decay schedule."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from nld_train.config.schema import Config, ScheduleConfig, StageConfig
from nld_train.errors import UserError
from nld_train.model.ministral3 import Ministral3Model
from nld_train.model.weight_gradients import adds_in_products, fuse
from nld_train.training.loop.adam import provide_to_megatron
from nld_train.training.loop.data_parallel import BucketedDataParallel
from nld_train.training.loop.padded_buckets import keep_padding


def wrap_model(config: Config, megatron: TransformerConfig, chunks: list[Any]) -> list[Any]:
    """Wraps the model's chunks for mixed precision and data parallelism, and registers them with the schedule.

    Gradient buffers are allocated for the weights that require a gradient. Chunks that are wrapped are returned.
    """
    if not isinstance(chunks[0], Ministral3Model):
        return chunks
    parallel = config.parallel
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        # In every layout, data-parallel or not, so that any layout can load the state of any other.
        use_distributed_optimizer=True,
    )
    mixed_precision = [Float16Module(megatron, chunk) if megatron.bf16 else chunk for chunk in chunks]
    wrapped = [BucketedDataParallel(megatron, settings, chunk) for chunk in mixed_precision]
    fuse(wrapped, on=adds_in_products(config, next(wrapped[0].parameters()).device))
    megatron.finalize_model_grads_func = _finalize_gradients
    if parallel.overlap_grad_reduce:
        hooks = [chunk.no_sync for chunk in wrapped]
        megatron.no_sync_func = hooks if len(hooks) > 1 else hooks[0]
    return wrapped


def unwrap(chunk: Any) -> Ministral3Model:
    """The model inside the wrappers of data parallelism and mixed precision."""
    while not isinstance(chunk, Ministral3Model):
        chunk = chunk.module
    return chunk


def release_wrappers(model: list[Any]) -> list[Ministral3Model]:
    """The model's chunks without wrappers, hooks and gradient buffers, ready to be wrapped again."""
    fuse(model, on=False)
    for wrapped in model:
        if isinstance(wrapped, Ministral3Model):
            continue
        if wrapped.use_forward_hook:
            wrapped.disable_forward_pre_hook()
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                del parameter.main_grad
    return [unwrap(wrapped) for wrapped in model]


def gather_parameters(model: list[Any]) -> None:
    """All-gathers the weights, so that they are up to date on every data-parallel rank and can be read between steps.

    With `parallel.overlap_param_gather` a step updates each rank's own shard, and the other shards are gathered during
    the next forward pass: until then they have the values of the previous step.
    """
    for wrapped in model:
        if wrapped.ddp_config.overlap_param_gather:
            wrapped.start_param_sync(force_sync=True)


def _finalize_gradients(model: list[Any], num_tokens: Any = None, **arguments: Any) -> None:
    """Megatron's reduction of gradients, without its division by a number of tokens: the loss is already a mean."""
    del num_tokens
    finalize_model_grads(model, None, **arguments)


def build_optimizer(config: Config, stage: StageConfig, model: list[Any], dtype: torch.dtype) -> Any:
    """A new optimizer over the model's current weights. As is Megatron's default, norms have no weight decay."""
    provide_to_megatron()
    settings = config.optimizer
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=stage.schedule.learning_rate,
            min_lr=stage.schedule.final_learning_rate,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.clip_grad,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=True,
            overlap_param_gather=config.parallel.overlap_param_gather,
            **_state_settings(config),
        ),
        model,
    )
    for part in optimizer_parts(optimizer):
        keep_padding(part)
    return optimizer


def optimizer_parts(optimizer: Any) -> list[Any]:
    """Megatron's optimizers of this rank, chained or the only one; none where it trains no weights."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _state_settings(config: Config) -> dict[str, Any]:
    """Fields of Megatron's configuration for optimizer states in fewer bits or in host memory."""
    settings = config.optimizer
    if not settings.precision_aware:
        return {}
    if not torch.cuda.is_available():
        raise UserError("optimizer.precision_aware=true: needs CUDA; set optimizer.precision_aware=false")
    if not settings.cpu_offload and find_spec("transformer_engine") is None:
        raise UserError(
            "optimizer.precision_aware=true: needs the optimizer of Transformer Engine; install nld-train[h100] or set "
            "optimizer.precision_aware=false"
        )
    moments = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.uint8}
    return {
        "use_precision_aware_optimizer": True,
        # Remainders are 16 bits beside the weight's own 16, as integers; Megatron saves them as if they were whole
        # float32 weights, which a resumed run would then start from.
        "store_param_remainders": False,
        "exp_avg_dtype": moments[settings.moments],
        "exp_avg_sq_dtype": moments[settings.moments],
        # It decides which attribute Megatron reads gradients from.
        "fp8_recipe": None if config.execution.fp8 == "none" else config.execution.fp8_recipe,
        "optimizer_cpu_offload": settings.cpu_offload > 0,
        "optimizer_offload_fraction": settings.cpu_offload,
        "overlap_cpu_optimizer_d2h_h2d": settings.cpu_offload > 0,
    }


# Keys of a parameter group that are state; all others are settings.
_STATE_KEYS = ("params", "step")
# Keys of a parameter group that say which weights are in it: norms have no weight decay.
_IDENTITY_KEYS = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr")


def load_optimizer(optimizer: Any, state: Any) -> None:
    """Loads the state of an optimizer: moments, main weights, number of steps. Its settings stay the current ones.

    Megatron keeps learning rates, betas, epsilon and weight decay in the parameter groups. It would take all groups
    from the checkpoint and use their settings instead of the current schedule's; Megatron 0.19 finds a saved group by
    its learning rates and weight decays, and fails where they have changed. So the saved groups get the current
    settings before they are loaded.

    Args:
        optimizer: new, from `build_optimizer`.
        state: of the checkpoint, for this rank; it is changed.
    """
    parts = optimizer_parts(optimizer)
    assert len(parts) == 1, "one optimizer for all weights, which is Megatron's way without experts"
    current = {_identity(group): group for group in optimizer.param_groups}
    assert len(current) == len(optimizer.param_groups), "two parameter groups that nothing tells apart"
    # A rank that trains no weight has no group.
    for group in state["optimizer"]["param_groups"] if current else []:
        own = current[_identity(group)]
        group.update({key: value for key, value in own.items() if key not in _STATE_KEYS})
    optimizer.load_state_dict(state)


def _identity(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(key) for key in _IDENTITY_KEYS)


def build_scheduler(
    schedule: ScheduleConfig, optimizer: Any, steps: int, weight_decay: float
) -> OptimizerParamScheduler:
    """The learning rate of a stage of `steps` optimizer steps.

    It is a function of the step alone. Advance it *before* each update: Megatron starts at the warmup's zero.
    """
    warmup = min(int(schedule.warmup_fraction * steps), steps - 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=schedule.learning_rate,
        min_lr=schedule.final_learning_rate,
        lr_warmup_steps=warmup,
        lr_decay_steps=steps,
        lr_decay_style="WSD",
        wsd_decay_steps=max(1, int(schedule.decay_fraction * steps)),
        lr_wsd_decay_style=schedule.decay_style,
        start_wd=weight_decay,
        end_wd=weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )
