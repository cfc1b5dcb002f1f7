"""A run in Weights & Biases."""

from __future__ import annotations

import os
import re
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from nld_train.config.load import config_to_dict
from nld_train.config.schema import Config
from nld_train.files import open_regular, set_aside, write_atomically
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import flat
from nld_train.training.metrics.registry import MetricTable

# What Weights & Biases takes as one.
_LONGEST_IDENTITY = 128
_IDENTITY = rf"[\w.-]{{1,{_LONGEST_IDENTITY}}}"


class WandbLog:
    """Weights & Biases, offline unless configured; a continued run keeps its identity.

    Args:
        config: the run.
        metrics: of the run; None for the registered ones.
    """

    def __init__(self, config: Config, metrics: MetricTable | None = None) -> None:
        self._metrics = metrics or MetricTable()
        self._run: Any = None
        if config.logging.wandb.mode == "disabled":
            return
        import wandb

        settings = config.logging.wandb
        self._run = wandb.init(
            mode=settings.mode,
            project=settings.project,
            entity=settings.entity,
            name=config.run.name,
            id=_wandb_identity(Path(config.run.dir)),
            resume="allow",
            dir=config.run.dir,
            config=config_to_dict(config),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=settings.mode == "offline"),
        )

    def write(self, record: Record) -> None:
        """Logs what every metric of a step gives: numbers, tables and plots."""
        if self._run is not None:
            self._run.log(wandb_values(record, self._metrics), step=record["step"])

    def finish(self, summary: Record | None = None, image: Path | None = None) -> None:
        """Ends the run, with its summary and, if there is one, the image of its curves."""
        if self._run is None:
            return
        if summary is not None:
            self._run.summary.update(flat(summary))
        if image is not None:
            import wandb

            self._run.log({"report": wandb.Image(str(image))})
        self._run.finish()


def wandb_values(record: Record, metrics: MetricTable) -> Record:
    """The values of a step that are logged."""
    values: Record = {}
    for name, value in record.items():
        values |= metrics[name].wandb_values(value)
    return values


def _wandb_identity(directory: Path) -> str:
    """The identity in the file `wandb_id`; a new one where there is none, or the file holds something else."""
    path = directory / "wandb_id"
    if os.path.lexists(path):
        with suppress(OSError, UnicodeDecodeError), open_regular(path) as file:
            identity = file.read(_LONGEST_IDENTITY + 1).decode().strip()
            if re.fullmatch(_IDENTITY, identity):
                return identity
        print(f"warning: {path} holds no identity and is renamed to {set_aside(path).name}", file=sys.stderr)
    write_atomically(path, identity := uuid.uuid4().hex[:8])
    return identity
