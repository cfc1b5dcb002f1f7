"""Refuses layouts that do not fit the model, the batch or the number of processes."""

from __future__ import annotations

from math import gcd

from nld_train.config.checks import divides, divisors, refuse_unless
from nld_train.config.plan import data_parallel_size, micro_batches
from nld_train.config.ranges import check_ranges
from nld_train.config.schema import Config
from nld_train.config.stage_kinds import running_kinds


def validate_layout(config: Config, world_size: int) -> None:
    """Raise `UserError` for a layout that is impossible for `world_size` processes."""
    _check_context_parallel(config)
    validate_model_parallel(config)
    _check_world(config, world_size)


def validate_model_parallel(config: Config) -> None:
    """Raise `UserError` if the model cannot be split over tensor- and pipeline-parallel processes like this."""
    check_ranges(config.parallel, "parallel.")
    _check_tensor_parallel(config)
    _check_pipeline_parallel(config)


def _check_context_parallel(config: Config) -> None:
    context, length = config.parallel.context, config.batch.sequence_length
    if context == 1:
        return
    valid = (
        f"parallel.context={context} splits a sample into {2 * context} equal parts; take a multiple of {2 * context}"
    )
    refuse_unless(length % (2 * context) == 0, "batch.sequence_length", length, valid)
    for name, kind in running_kinds(config).items():
        noisy = kind.noisy_length(length)
        refuse_unless(noisy % (2 * context) == 0, f"stages.{name}.noisy_length", noisy, valid)


def _check_tensor_parallel(config: Config) -> None:
    parallel, model = config.parallel, config.model
    sizes = {name: getattr(model, name) for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
    valid_sizes = divisors(gcd(*sizes.values()))
    for name, size in sizes.items():
        divides("parallel.tensor", parallel.tensor, f"model.{name}", size, valid_sizes)
    if parallel.sequence:
        refuse_unless(parallel.tensor > 1, "parallel.sequence", True, "needs parallel.tensor > 1; set false")
        _check_sequence_parallel_lengths(config)
    if parallel.overlap_param_gather:
        valid = "needs parallel.overlap_grad_reduce=true; set false"
        refuse_unless(parallel.overlap_grad_reduce, "parallel.overlap_param_gather", True, valid)


def _check_sequence_parallel_lengths(config: Config) -> None:
    length, parts = config.batch.sequence_length, config.parallel.tensor * config.parallel.context
    splitting = f"parallel.sequence splits into parallel.tensor={config.parallel.tensor} equal parts"
    if config.parallel.context > 1:
        splitting = f"parallel.context x parallel.sequence splits into {parts} equal parts"
    for name, kind in running_kinds(config).items():
        for stream_length in kind.stream_lengths(length):
            sent = f"{stream_length} positions{' (two streams)' if stream_length > length else ''}"
            valid = f"stage {name!r} sends {sent} through the model, which {splitting}; take a multiple of {parts}"
            refuse_unless(stream_length % parts == 0, "batch.sequence_length", length, valid)


def _check_pipeline_parallel(config: Config) -> None:
    parallel, layers = config.parallel, config.model.num_hidden_layers
    divides("parallel.pipeline", parallel.pipeline, "model.num_hidden_layers", layers)
    virtual = parallel.virtual_pipeline
    if virtual is None:
        return
    refuse_unless(parallel.pipeline > 1, "parallel.virtual_pipeline", virtual, "needs parallel.pipeline > 1; set null")
    per_rank = layers // parallel.pipeline
    described = f"the layers of a pipeline rank, {layers} / {parallel.pipeline}"
    divides("parallel.virtual_pipeline", virtual, described, per_rank, divisors(per_rank, smallest=2))


def _check_world(config: Config, world_size: int) -> None:
    parallel, batch = config.parallel, config.batch
    model_size = parallel.tensor * parallel.pipeline * parallel.context
    sizes = f"parallel.tensor={parallel.tensor} x parallel.pipeline={parallel.pipeline}"
    if parallel.context > 1:
        sizes += f" x parallel.context={parallel.context}"
    valid = f"must be a multiple of {model_size}, {sizes}"
    key = "run.plan_world_size" if config.run.dry and world_size == config.run.plan_world_size else "world size"
    refuse_unless(world_size >= 1 and world_size % model_size == 0, key, world_size, valid)
    data_size = data_parallel_size(config, world_size)
    pass_size = batch.micro_size * data_size
    valid = f"must be a multiple of {pass_size}, batch.micro_size={batch.micro_size} x data-parallel size {data_size}"
    refuse_unless(batch.global_size % pass_size == 0, "batch.global_size", batch.global_size, valid)
    if config.validation.every > 0:
        _check_validation_samples(config, pass_size)
    if parallel.virtual_pipeline is not None:
        count = micro_batches(config, world_size)
        valid = (
            f"makes {count} micro-batches, but parallel.virtual_pipeline needs a multiple of "
            f"parallel.pipeline={parallel.pipeline}; take a multiple of {pass_size * parallel.pipeline}"
        )
        refuse_unless(count % parallel.pipeline == 0, "batch.global_size", batch.global_size, valid)


def _check_validation_samples(config: Config, pass_size: int) -> None:
    """Held-out samples go through the same schedule as a training step."""
    multiple = pass_size * (config.parallel.pipeline if config.parallel.virtual_pipeline is not None else 1)
    valid = f"must be a multiple of {multiple}, as batch.micro_size and the layout require"
    refuse_unless(config.validation.samples % multiple == 0, "validation.samples", config.validation.samples, valid)
