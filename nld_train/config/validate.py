"""Refusing what cannot be, before anything heavy starts.

Types and unknown keys are `load`'s; here are ranges, divisibility and contradictions. Every refusal is one line that
names the key, its value and what would be valid.
"""

from __future__ import annotations

from collections.abc import Iterable

from nld_train.config.checks import at_least, below_one, divides, fraction, positive, refuse_unless
from nld_train.config.rope import ROPE_TYPES
from nld_train.config.schema import (
    SIZE_KEYS,
    VALIDATION,
    AdapterConfig,
    Config,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)
from nld_train.config.validate_execution import validate_execution
from nld_train.config.validate_layout import validate_layout
from nld_train.masking.schedule import SCHEDULES

# Random generators take seeds of 64 bits, and Megatron adds a rank to its own.
_SEED_BITS = 63


def validate(config: Config, world_size: int) -> None:
    """Raise `UserError` for the first setting that is impossible for `world_size` processes or contradicts another."""
    _check_run(config)
    _check_model(config)
    _check_rope(config)
    _check_data(config)
    _check_diffusion(config)
    for name, stage in config.stages.items():
        _check_stage(f"stages.{name}", stage, dry=bool(config.run.dry))
        if stage.adapter is not None:
            _check_adapter(config, name, stage, stage.adapter)
    _check_batch(config)
    validate_execution(config)
    _check_intervals(config)
    _check_evaluation(config)
    validate_layout(config, world_size)


def _check_run(config: Config) -> None:
    run = config.run
    defined = ", ".join(config.stages) or "none"
    refuse_unless(run.dir.strip() != "", "run.dir", repr(run.dir), "must be a path")
    at_least("run.seed", run.seed, 0)
    refuse_unless(run.seed < 2**_SEED_BITS, "run.seed", run.seed, f"must be below 2**{_SEED_BITS} = {2**_SEED_BITS}")
    at_least("run.plan_world_size", run.plan_world_size, 1)
    if run.max_steps is not None:
        at_least("run.max_steps", run.max_steps, 1)
    listed = f"[{','.join(run.stages)}]"
    refuse_unless(len(run.stages) > 0, "run.stages", listed, f"must name at least one stage; defined: {defined}")
    for name in run.stages:
        refuse_unless(name in config.stages, "run.stages", listed, f"no stage {name!r} is defined; defined: {defined}")
    refuse_unless(len(set(run.stages)) == len(run.stages), "run.stages", listed, "must name each stage only once")
    valid = f"must not define a stage {VALIDATION!r}, which would share its noise with held-out samples; rename it"
    refuse_unless(VALIDATION not in config.stages, "stages", f"[{defined}]", valid)
    # A plan needs no weights.
    named = config.init.checkpoint is not None or not config.init.required or bool(run.dry)
    valid = "must name trained weights to start from (init.required=true); init.required=false starts from random ones"
    refuse_unless(named, "init.checkpoint", config.init.checkpoint, valid)


def _check_model(config: Config) -> None:
    model = config.model
    for name in SIZE_KEYS:
        at_least(f"model.{name}", getattr(model, name), 1)
    positive("model.rms_norm_eps", model.rms_norm_eps)
    positive("model.initializer_range", model.initializer_range)
    refuse_unless(model.head_dim % 2 == 0, "model.head_dim", model.head_dim, "must be even: rotary turns pairs")
    heads = model.num_attention_heads
    divides("model.num_key_value_heads", model.num_key_value_heads, "model.num_attention_heads", heads)
    for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
        valid = f"must lie in [0, {model.vocab_size}), below model.vocab_size"
        refuse_unless(0 <= getattr(model, name) < model.vocab_size, f"model.{name}", getattr(model, name), valid)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        valid = f"must differ from model.{name}: the mask must not stand for anything else"
        mask = model.mask_token_id
        refuse_unless(getattr(model, name) != mask, "model.mask_token_id", mask, valid)


def _check_rope(config: Config) -> None:
    rope = config.model.rope_parameters
    key = "model.rope_parameters"
    known = rope.rope_type in ROPE_TYPES
    refuse_unless(known, f"{key}.rope_type", rope.rope_type, f"must be {' or '.join(ROPE_TYPES)}")
    positive(f"{key}.rope_theta", rope.rope_theta)
    for other, name in ((other, name) for other, names in ROPE_TYPES.items() for name in names):
        if name in ROPE_TYPES[rope.rope_type]:
            positive(f"{key}.{name}", getattr(rope, name))
        else:
            valid = f"means nothing with rope_type={rope.rope_type}; set null, or rope_type={other}"
            refuse_unless(getattr(rope, name) is None, f"{key}.{name}", getattr(rope, name), valid)
    if rope.rope_type == "yarn" or rope.llama_4_scaling_beta is not None:
        positive(f"{key}.original_max_position_embeddings", rope.original_max_position_embeddings)
    if rope.llama_4_scaling_beta is not None:
        at_least(f"{key}.llama_4_scaling_beta", rope.llama_4_scaling_beta, 0)


def _check_data(config: Config) -> None:
    data = config.data
    _check_sources("data.train", data.train)
    _check_sources("data.validation", data.validation)
    at_least("data.workers", data.workers, 0)
    if config.run.dry:  # A plan needs no data.
        return
    example = "name a prepared token set, e.g. '[{prefix: /corpus/web, weight: 1}]'"
    # Stages that bring their own data do not need the common set.
    if any(config.stages[name].train is None for name in config.run.stages):
        refuse_unless(len(data.train) > 0, "data.train", "[]", example)
    for group in ("validation", "evaluation"):
        if getattr(config, group).every > 0:
            refuse_unless(len(data.validation) > 0, "data.validation", "[]", f"{example}, or set {group}.every=0")


def _check_sources(key: str, sources: Iterable[SourceConfig]) -> None:
    for index, source in enumerate(sources):
        prefix = source.prefix
        refuse_unless(prefix.strip() != "", f"{key}[{index}].prefix", repr(prefix), "must be a path without its ending")
        positive(f"{key}[{index}].weight", source.weight)


def _check_diffusion(config: Config) -> None:
    at_least("diffusion.block_size", config.diffusion.block_size, 1)
    below_one("diffusion.epsilon", config.diffusion.epsilon)
    known = config.diffusion.schedule in SCHEDULES
    refuse_unless(known, "diffusion.schedule", config.diffusion.schedule, f"must be one of {', '.join(SCHEDULES)}")
    levels = config.diffusion.levels
    by_block = config.diffusion.level_scope == "block"
    valid = "must be independent with diffusion.level_scope=block: each block draws a level for itself"
    refuse_unless(levels == "independent" or not by_block, "diffusion.levels", levels, valid)


def _check_stage(key: str, stage: StageConfig, dry: bool) -> None:
    refuse_unless(stage.tokens > 0, f"{key}.tokens", stage.tokens, "must be above 0")
    at_least(f"{key}.alpha", stage.alpha, 0)
    if stage.train is not None:
        refuse_unless(dry or len(stage.train) > 0, f"{key}.train", "[]", "name a prepared token set, or set null")
        _check_sources(f"{key}.train", stage.train)
    _check_schedule(f"{key}.schedule", stage.schedule)


def _check_adapter(config: Config, name: str, stage: StageConfig, adapter: AdapterConfig) -> None:
    key = f"stages.{name}"
    refuse_unless(stage.alpha == 0, f"{key}.alpha", stage.alpha, "must be 0: a drafter adapter has a loss of its own")
    valid = "must be global: every block of a step counts the same in the loss of a drafter adapter"
    refuse_unless(stage.averaging == "global", f"{key}.averaging", stage.averaging, valid)
    listed = f"[{','.join(config.run.stages)}]"
    valid = f"must name {name!r} last: its adapter belongs to the weights that the stages before it leave"
    refuse_unless(name not in config.run.stages[:-1], "run.stages", listed, valid)
    at_least(f"{key}.adapter.rank", adapter.rank, 1)
    at_least(f"{key}.adapter.block_length", adapter.block_length, 2)
    at_least(f"{key}.adapter.top_k", adapter.top_k, 1)
    positive(f"{key}.adapter.alpha", adapter.alpha)
    positive(f"{key}.adapter.temperature", adapter.temperature)
    fraction(f"{key}.adapter.greedy_share", adapter.greedy_share)


def _check_schedule(key: str, schedule: ScheduleConfig) -> None:
    peak, final = schedule.learning_rate, schedule.final_learning_rate
    positive(f"{key}.learning_rate", peak)
    valid = f"must lie in [0, {peak}], at most learning_rate"
    refuse_unless(0 <= final <= peak, f"{key}.final_learning_rate", final, valid)
    if schedule.decay_style == "exponential":
        positive(f"{key}.final_learning_rate", final)
    fraction(f"{key}.warmup_fraction", schedule.warmup_fraction)
    fraction(f"{key}.decay_fraction", schedule.decay_fraction)
    valid = f"with warmup_fraction={schedule.warmup_fraction} must be at most 1"
    both = schedule.warmup_fraction + schedule.decay_fraction
    refuse_unless(both <= 1 + 1e-9, f"{key}.decay_fraction", schedule.decay_fraction, valid)


def _check_batch(config: Config) -> None:
    batch = config.batch
    for name in ("global_size", "micro_size", "sequence_length"):
        at_least(f"batch.{name}", getattr(batch, name), 1)
    longest = config.model.max_position_embeddings
    valid = f"must be at most model.max_position_embeddings={longest}"
    refuse_unless(batch.sequence_length <= longest, "batch.sequence_length", batch.sequence_length, valid)


def _check_intervals(config: Config) -> None:
    validation, logging = config.validation, config.logging
    at_least("checkpoint.every", config.checkpoint.every, 1)
    for key in ("keep_last", "keep_every"):
        if (number := getattr(config.checkpoint, key)) is not None:
            at_least(f"checkpoint.{key}", number, 1)
    at_least("logging.every", logging.every, 1)
    if logging.peak_tflops is not None:
        positive("logging.peak_tflops", logging.peak_tflops)
    at_least("validation.every", validation.every, 0)
    at_least("validation.samples", validation.samples, 1)
    listed = list(validation.levels)
    for level in listed:
        refuse_unless(0 < level <= 1, "validation.levels", listed, "each must lie in (0, 1]")
    refuse_unless(len(set(listed)) == len(listed), "validation.levels", listed, "must name each level only once")
    joint = any(config.stages[name].alpha > 0 for name in config.run.stages)
    if joint and validation.every > 0:
        refuse_unless(len(listed) > 0, "validation.levels", listed, "must name at least one level for a joint stage")


def _check_evaluation(config: Config) -> None:
    evaluation = config.evaluation
    at_least("evaluation.every", evaluation.every, 0)
    for name in ("prompts", "prompt_tokens", "max_new_tokens", "block_length"):
        at_least(f"evaluation.{name}", getattr(evaluation, name), 1)
    fraction("evaluation.threshold", evaluation.threshold)
    listed = f"[{','.join(evaluation.modes)}]"
    refuse_unless(
        "ar" in evaluation.modes, "evaluation.modes", listed, "must name ar: agreement is measured against it"
    )
    once = len(set(evaluation.modes)) == len(evaluation.modes)
    refuse_unless(once, "evaluation.modes", listed, "must name each mode only once")
    room = config.model.max_position_embeddings - evaluation.prompt_tokens
    valid = (
        f"with prompt_tokens={evaluation.prompt_tokens} must be at most {room}, within model.max_position_embeddings"
    )
    fits = evaluation.every == 0 or evaluation.max_new_tokens <= room
    refuse_unless(fits, "evaluation.max_new_tokens", evaluation.max_new_tokens, valid)
