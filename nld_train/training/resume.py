"""Whether a run may go on from a checkpoint: what must be the same, and what may change."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nld_train.config.schema import Config, ModelConfig
from nld_train.data.order import StageOrder
from nld_train.errors import UserError
from nld_train.training.checkpoint import Progress

# Keys that the samples, their noise and the meaning of a step depend on. Layout, micro-batch and workers may change.
_FIXED = (
    ("run", "seed"),
    ("batch", "global_size"),
    ("batch", "sequence_length"),
    ("data", "documents"),
)


# Neither names nor special ids of the text nor how new weights are drawn matter to the weights that are there.
_NOT_OF_THE_WEIGHTS = ("name", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")


def refuse_other_model(directory: Path, saved: dict[str, Any], model: ModelConfig) -> None:
    """Refuses a checkpoint whose weights are of another shape or another meaning than the model asked for.

    Args:
        directory: the checkpoint.
        saved: its `model.json`. Of a key that its writer did not know, nothing is known that would speak against it.
        model: asked for.

    Raises:
        UserError: names the first key that differs.
    """
    for key, value in asdict(model).items():
        if key in saved and key not in _NOT_OF_THE_WEIGHTS:
            _same(directory, f"model.{key}", saved[key], value)


def refuse_other_run(
    directory: Path, saved: Config, progress: Progress, config: Config, orders: dict[str, StageOrder]
) -> None:
    """Refuses to go on where the sample and noise stream would not continue.

    Args:
        directory: the checkpoint.
        saved: the settings that wrote it.
        progress: where it stands.
        config: the settings of now.
        orders: the data of now, by stage.

    Raises:
        UserError: names the key, or the data, that differs.
    """
    refuse_other_model(directory, asdict(saved.model), config.model)
    for group, key in _FIXED:
        _same(directory, f"{group}.{key}", getattr(getattr(saved, group), key), getattr(getattr(config, group), key))
    _same(directory, "diffusion", saved.diffusion, config.diffusion)
    done = saved.run.stages[: saved.run.stages.index(progress.stage) + 1]
    _same(directory, "run.stages (those begun)", done, config.run.stages[: len(done)])
    for stage in done:
        for key in ("tokens", "adapter"):
            before, now = (getattr(settings.stages[stage], key) for settings in (saved, config))
            _same(directory, f"stages.{stage}.{key}", before, now)
        if progress.data.get(stage) != orders[stage].fingerprint:
            raise UserError(
                f"data of stage {stage}: differs from what {directory} was trained on (other files, blend or order); "
                "restore data.train, or start in a new run.dir with init.checkpoint"
            )


def _same(directory: Path, key: str, saved: Any, given: Any) -> None:
    if saved != given:
        raise UserError(
            f"{key}: {given} does not continue {directory}, which was written with {saved}; "
            "use that value, or start in a new run.dir"
        )
