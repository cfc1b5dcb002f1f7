"""Refuses invalid settings before anything expensive starts.

`load` refuses wrong types and unknown keys, `ranges` what `schema` declares out of range; here are divisibility and
settings that contradict each other or a stage's kind. Every refusal is one line that names the key, its value and what
would be valid.
"""

from __future__ import annotations

from collections.abc import Iterable

from nld_train.config.checks import divides, positive, refuse_unless
from nld_train.config.hooks import HOOKS
from nld_train.config.hub import hub_model
from nld_train.config.ranges import check_ranges
from nld_train.config.rope import ROPE_TYPES
from nld_train.config.schema import (
    VALIDATION,
    Config,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)
from nld_train.config.stage_kinds import running_kinds, stage_kind
from nld_train.config.validate_execution import validate_execution, validate_profile
from nld_train.config.validate_layout import validate_layout
from nld_train.masking.schedule import SCHEDULES
from nld_train.registry import refuse_unknown


def validate(config: Config, world_size: int) -> None:
    """Raise `UserError` for the first setting that is impossible for `world_size` processes or contradicts another."""
    check_ranges(config)
    validate_relations(config, world_size)


def validate_relations(config: Config, world_size: int) -> None:
    """`validate` for settings whose numbers are known to be in their ranges."""
    _check_run(config)
    _check_model(config)
    _check_vision(config)
    _check_rope(config)
    _check_data(config)
    _check_diffusion(config)
    for name, stage in config.stages.items():
        _check_stage(f"stages.{name}", stage, dry=bool(config.run.dry))
    for name, kind in running_kinds(config).items():
        kind.check_run(config, name)
    _check_batch(config)
    validate_execution(config)
    validate_profile(config, world_size)
    _check_validation(config)
    _check_evaluation(config)
    validate_layout(config, world_size)


def _check_run(config: Config) -> None:
    run = config.run
    defined = ", ".join(config.stages) or "none"
    refuse_unless(run.dir.strip() != "", "run.dir", repr(run.dir), "must be a path")
    listed = f"[{','.join(run.stages)}]"
    refuse_unless(len(run.stages) > 0, "run.stages", listed, f"must name at least one stage; defined: {defined}")
    for name in run.stages:
        undefined = (
            f"no stage {name!r} is defined; defined: {defined}; a new one is added with '+stages.{name}={{...}}'"
        )
        refuse_unless(name in config.stages, "run.stages", listed, undefined)
    refuse_unless(len(set(run.stages)) == len(run.stages), "run.stages", listed, "must name each stage only once")
    valid = f"must not define a stage {VALIDATION!r}, which would share its noise with held-out samples; rename it"
    refuse_unless(VALIDATION not in config.stages, "stages", f"[{defined}]", valid)
    for name in run.hooks:
        refuse_unknown(name, HOOKS, "run.hooks")
    hooks = f"[{','.join(run.hooks)}]"
    refuse_unless(len(set(run.hooks)) == len(run.hooks), "run.hooks", hooks, "must name each hook only once")
    # A plan needs no weights.
    named = config.init.checkpoint is not None or not config.init.required or bool(run.dry)
    valid = "must name trained weights to start from (init.required=true); init.required=false starts from random ones"
    refuse_unless(named, "init.checkpoint", config.init.checkpoint, valid)
    if config.init.checkpoint is not None:
        hub_model(config.init.checkpoint, "init.checkpoint")


def _check_model(config: Config) -> None:
    model = config.model
    refuse_unless(
        model.head_dim % 2 == 0, "model.head_dim", model.head_dim, "must be even: rotary embedding rotates pairs"
    )
    heads = model.num_attention_heads
    divides("model.num_key_value_heads", model.num_key_value_heads, "model.num_attention_heads", heads)
    for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
        valid = f"must lie in [0, {model.vocab_size}), below model.vocab_size"
        refuse_unless(0 <= getattr(model, name) < model.vocab_size, f"model.{name}", getattr(model, name), valid)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        valid = f"must differ from model.{name}: the mask token must have no other meaning"
        mask = model.mask_token_id
        refuse_unless(getattr(model, name) != mask, "model.mask_token_id", mask, valid)


def _check_vision(config: Config) -> None:
    """Refuses a tower that cannot be built, ids outside the vocabulary, and stages that train what there is not."""
    vision, key = config.model.vision, "model.vision"
    for name in config.run.stages:
        stage, of_stage = config.stages[name], f"stages.{name}.trained_weights"
        valid = "must be all: the model has no vision tower; set model.vision, or all"
        refuse_unless(vision is not None or stage.trained_weights == "all", of_stage, stage.trained_weights, valid)
        whole = stage.trained_weights == "all" or (stage.lora is None and stage.adapter is None)
        refuse_unless(whole, of_stage, stage.trained_weights, "must be all in a stage that trains a LoRA or an adapter")
    if vision is None:
        refuse_unless(config.init.vision is None, "init.vision", config.init.vision, "needs model.vision; set null")
        return
    alone = config.init.vision is not None and config.init.checkpoint is None
    refuse_unless(not alone, "init.vision", config.init.vision, "needs the text model in init.checkpoint; set both")
    divides(f"{key}.num_attention_heads", vision.num_attention_heads, f"{key}.hidden_size", vision.hidden_size)
    width = vision.hidden_size // vision.num_attention_heads
    valid = f"gives heads of width {width}; axial rotary embedding needs a multiple of 4"
    refuse_unless(width % 4 == 0, f"{key}.num_attention_heads", vision.num_attention_heads, valid)
    edge = vision.patch_size * vision.spatial_merge_size
    valid = f"must be at least {edge}, a merged patch: patch_size x spatial_merge_size"
    refuse_unless(vision.image_size >= edge, f"{key}.image_size", vision.image_size, valid)
    ids = {name: getattr(vision, name) for name in ("image_token_id", "image_break_token_id", "image_end_token_id")}
    for name, token in ids.items():
        valid = f"must lie in [0, {config.model.vocab_size}), below model.vocab_size"
        refuse_unless(token < config.model.vocab_size, f"{key}.{name}", token, valid)
        valid = "must differ from model.mask_token_id, and the three ids from each other"
        unlike = token != config.model.mask_token_id and list(ids.values()).count(token) == 1
        refuse_unless(unlike, f"{key}.{name}", token, valid)
    context = config.parallel.context
    valid = "must be 1: pictures are put into whole samples, which context parallelism divides; set 1, or vision=null"
    refuse_unless(context == 1, "parallel.context", context, valid)


def _check_rope(config: Config) -> None:
    rope = config.model.rope_parameters
    key = "model.rope_parameters"
    known = rope.rope_type in ROPE_TYPES
    refuse_unless(known, f"{key}.rope_type", rope.rope_type, f"must be {' or '.join(ROPE_TYPES)}")
    for other, name in ((other, name) for other, names in ROPE_TYPES.items() for name in names):
        if name in ROPE_TYPES[rope.rope_type]:
            positive(f"{key}.{name}", getattr(rope, name))
        else:
            valid = f"has no effect with rope_type={rope.rope_type}; set null, or rope_type={other}"
            refuse_unless(getattr(rope, name) is None, f"{key}.{name}", getattr(rope, name), valid)
    if rope.rope_type == "yarn" or rope.llama_4_scaling_beta is not None:
        positive(f"{key}.original_max_position_embeddings", rope.original_max_position_embeddings)


def _check_data(config: Config) -> None:
    data = config.data
    _check_sources("data.train", data.train)
    _check_sources("data.validation", data.validation)
    if config.run.dry:  # A plan needs no data.
        return
    example = "name a prepared token set, e.g. '[{prefix: /corpus/web, weight: 1}]'"
    # Stages with data of their own do not need the common set.
    if any(config.stages[name].train is None for name in config.run.stages):
        refuse_unless(len(data.train) > 0, "data.train", "[]", example)
    for group in ("validation", "evaluation"):
        common = any(config.stages[name].validation is None for name in config.run.stages)
        if getattr(config, group).every > 0 and common:
            refuse_unless(len(data.validation) > 0, "data.validation", "[]", f"{example}, or set {group}.every=0")


def _check_sources(key: str, sources: Iterable[SourceConfig]) -> None:
    for index, source in enumerate(sources):
        prefix = source.prefix
        refuse_unless(prefix.strip() != "", f"{key}[{index}].prefix", repr(prefix), "must be a path without its ending")


def _check_diffusion(config: Config) -> None:
    known = config.diffusion.schedule in SCHEDULES
    refuse_unless(known, "diffusion.schedule", config.diffusion.schedule, f"must be one of {', '.join(SCHEDULES)}")
    levels = config.diffusion.levels
    by_block = config.diffusion.level_scope == "block"
    valid = "must be independent with diffusion.level_scope=block: each block draws a level for itself"
    refuse_unless(levels == "independent" or not by_block, "diffusion.levels", levels, valid)


def _check_stage(key: str, stage: StageConfig, dry: bool) -> None:
    kind = stage_kind(stage.kind, f"{key}.kind")
    for name in ("train", "validation"):
        sources = getattr(stage, name)
        if sources is not None:
            refuse_unless(dry or len(sources) > 0, f"{key}.{name}", "[]", "name a prepared token set, or set null")
            _check_sources(f"{key}.{name}", sources)
    _check_schedule(f"{key}.schedule", stage.schedule)
    kind.check_stage(key, stage)


def _check_schedule(key: str, schedule: ScheduleConfig) -> None:
    peak, final = schedule.learning_rate, schedule.final_learning_rate
    valid = f"must lie in [0, {peak}], at most learning_rate"
    refuse_unless(0 <= final <= peak, f"{key}.final_learning_rate", final, valid)
    if schedule.decay_style == "exponential":
        positive(f"{key}.final_learning_rate", final)
    valid = f"with warmup_fraction={schedule.warmup_fraction} must be at most 1"
    both = schedule.warmup_fraction + schedule.decay_fraction
    refuse_unless(both <= 1 + 1e-9, f"{key}.decay_fraction", schedule.decay_fraction, valid)


def _check_batch(config: Config) -> None:
    batch = config.batch
    longest = config.model.max_position_embeddings
    valid = f"must be at most model.max_position_embeddings={longest}"
    refuse_unless(batch.sequence_length <= longest, "batch.sequence_length", batch.sequence_length, valid)


def _check_validation(config: Config) -> None:
    validation = config.validation
    listed = list(validation.levels)
    refuse_unless(len(set(listed)) == len(listed), "validation.levels", listed, "must name each level only once")


def _check_evaluation(config: Config) -> None:
    evaluation = config.evaluation
    listed = f"[{','.join(evaluation.modes)}]"
    # Without AR predictions there is nothing to agree with.
    compared = "ar" in evaluation.modes or config.diffusion.clean == "block"
    refuse_unless(compared, "evaluation.modes", listed, "must name ar: agreement is measured against it")
    once = len(set(evaluation.modes)) == len(evaluation.modes)
    refuse_unless(once, "evaluation.modes", listed, "must name each mode only once")
    room = config.model.max_position_embeddings - evaluation.prompt_tokens
    valid = (
        f"with prompt_tokens={evaluation.prompt_tokens} must be at most {room}, within model.max_position_embeddings"
    )
    fits = evaluation.every == 0 or evaluation.max_new_tokens <= room
    refuse_unless(fits, "evaluation.max_new_tokens", evaluation.max_new_tokens, valid)
