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
from nld_train.output import write_error
from nld_train.printable import one_line
from nld_train.training.metrics.jsonl import Record
from nld_train.training.metrics.metric import flat
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.service_log import ServiceLog

# What Weights & Biases takes as one.
_LONGEST_IDENTITY = 128
_IDENTITY = rf"[\w.-]{{1,{_LONGEST_IDENTITY}}}"
# How long a start waits for the server before the run is logged offline, and an end for what was not sent yet.
_START_SECONDS = 60.0
_END_SECONDS = 600.0


class WandbLog(ServiceLog):
    """Weights & Biases, offline unless configured; a continued run keeps its identity.

    No failure of it ends the run: without a key or a connection, one line says so and the run is logged offline.

    Args:
        config: the run.
        metrics: of the run; None for the registered ones.
        start_seconds: how long to wait for the server at the start.
    """

    name = "Weights & Biases"

    def __init__(
        self, config: Config, metrics: MetricTable | None = None, start_seconds: float = _START_SECONDS
    ) -> None:
        self._start_seconds = start_seconds
        super().__init__(config, metrics)

    def _open(self, config: Config) -> Any:
        modes = {"disabled": (), "offline": ("offline",), "online": ("online", "offline")}
        for mode in modes[config.logging.wandb.mode]:
            try:
                return _start(config, mode, self._start_seconds)
            except Exception as error:  # whatever the library raises
                hint = "; logged offline, to be sent by `wandb sync`" if mode == "online" else ""
                write_error(f"warning: logging.wandb.mode={mode} fails ({one_line(str(error))}){hint}")
        return None

    def _write(self, run: Any, record: Record) -> None:
        """Logs what every metric of a step gives: numbers, tables and plots."""
        run.log(wandb_values(record, self._metrics), step=record["step"])

    def _finish(self, run: Any, summary: Record | None, image: Path | None) -> None:
        if summary is not None:
            run.summary.update(flat(summary))
        if image is not None:
            run.log({"report": _image(image)})
        run.finish()


def _start(config: Config, mode: Any, start_seconds: float) -> Any:
    import wandb

    options = {"init_timeout": start_seconds, "finish_timeout": _END_SECONDS}
    known = {name: value for name, value in options.items() if name in wandb.Settings.model_fields}
    try:
        return wandb.init(
            mode=mode,
            project=config.logging.wandb.project,
            entity=config.logging.wandb.entity,
            name=config.run.name,
            id=_wandb_identity(Path(config.run.dir)),
            resume="allow",
            dir=config.run.dir,
            config=config_to_dict(config),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=mode == "offline", **known),
        )
    except Exception:
        # Its service has the run's identity in use otherwise.
        wandb.teardown()
        raise


def _image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path))


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
