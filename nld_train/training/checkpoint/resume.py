"""Whether a run may continue from a checkpoint: which settings must be the same, and which may change."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nld_train.config.load import config_to_dict
from nld_train.config.schema import Config, ModelConfig
from nld_train.data.order import StageOrder
from nld_train.errors import UserError
from nld_train.training.checkpoint.contents import Progress

# Keys that the samples, their noise and the objective depend on. Layout, micro-batch and workers may change.
_FIXED = (
    ("run", "seed"),
    ("batch", "global_size"),
    ("batch", "sequence_length"),
    ("data", "documents"),
)

# Of the keys that may change, those that a step's result depends on, with all keys below them; `stages` where they
# are not complete.
_REPORTED = ("stages", "optimizer", "execution.precision", "execution.fp8", "execution.fp8_recipe")

# Existing weights do not depend on names, on special ids of the text or on the distribution of new weights.
_INDEPENDENT_OF_WEIGHTS = ("name", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")


def refuse_other_model(directory: Path, saved: dict[str, Any], model: ModelConfig) -> None:
    """Refuses a checkpoint whose weights differ in shape or meaning from those of the run's model.

    Args:
        directory: the checkpoint.
        saved: its `model.json`. A key that its writer did not know is not compared.
        model: of the run.

    Raises:
        UserError: names the first key that differs.
    """
    for key, value in asdict(model).items():
        if key in saved and key not in _INDEPENDENT_OF_WEIGHTS:
            _require_same(directory, f"model.{key}", saved[key], value)


def refuse_other_run(
    directory: Path, saved: Config, progress: Progress, config: Config, orders: dict[str, StageOrder]
) -> None:
    """Refuses a checkpoint where the sample and noise stream would not continue.

    Args:
        directory: the checkpoint.
        saved: the settings that wrote it.
        progress: of the run when it wrote the checkpoint.
        config: the current settings.
        orders: the current order of the data, by stage.

    Raises:
        UserError: names the key, or the data, that differs.
    """
    refuse_other_model(directory, asdict(saved.model), config.model)
    for group, key in _FIXED:
        _require_same(
            directory, f"{group}.{key}", getattr(getattr(saved, group), key), getattr(getattr(config, group), key)
        )
    _require_same(directory, "diffusion", saved.diffusion, config.diffusion)
    done = saved.run.stages[: saved.run.stages.index(progress.stage) + 1]
    _require_same(directory, "run.stages (those begun)", done, config.run.stages[: len(done)])
    for stage in done:
        for key in ("tokens", "adapter", "lora", "trained_weights"):
            before, now = (getattr(settings.stages[stage], key) for settings in (saved, config))
            _require_same(directory, f"stages.{stage}.{key}", before, now)
        if progress.data.get(stage) != orders[stage].fingerprint:
            raise UserError(
                f"data of stage {stage}: differs from what {directory} was trained on (other files, blend or order); "
                "restore data.train, or start in a new run.dir with init.checkpoint"
            )


def _require_same(directory: Path, key: str, saved: Any, given: Any) -> None:
    if saved != given:
        raise UserError(
            f"{key}: {given} does not continue {directory}, which was written with {saved}; "
            "use that value, or start in a new run.dir"
        )


def changed_settings(saved: Config, progress: Progress, config: Config) -> list[str]:
    """Where the settings of the next steps differ from those that a checkpoint was written with.

    All of these may change, and the current settings are used. They are listed so that no change is made by mistake.

    Args:
        saved: the settings that wrote the checkpoint.
        progress: of the run when it wrote the checkpoint.
        config: the current settings.

    Returns:
        `key: old -> new` for each changed key that a step's result depends on.
    """
    before, now = _reported(saved), _reported(config)
    complete = saved.run.stages[: saved.run.stages.index(progress.stage) + progress.ends_stage]
    stages = [name for name in config.run.stages if name in saved.stages and name not in complete]
    keys = [key for key in now if not key.startswith("stages.") or key.split(".")[1] in stages]
    return [f"{key}: {before.get(key)} -> {now[key]}" for key in keys if before.get(key) != now[key]]


def _reported(config: Config) -> dict[str, Any]:
    """The settings below `_REPORTED`, under their whole names."""
    named = _named("", config_to_dict(config))
    return {key: value for key, value in named.items() if f"{key}.".startswith(tuple(f"{key}." for key in _REPORTED))}


def _named(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    prefix = f"{name}." if name else ""
    return {key: item for word, below in value.items() for key, item in _named(f"{prefix}{word}", below).items()}
