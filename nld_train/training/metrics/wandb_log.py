"""A run in Weights & Biases."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from nld_train.config.load import config_to_dict
from nld_train.config.schema import Config
from nld_train.files import write_atomically
from nld_train.training.metrics.jsonl import Record


class WandbLog:
    """Weights & Biases, offline unless configured; a run that continues keeps its identity."""

    def __init__(self, config: Config) -> None:
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
        """Logs a step: every number, and what was decoded also as tables and a plot."""
        if self._run is None:
            return
        values = _flat(record)
        values.pop("decoding/samples", None)
        if "decoding" in record:
            values |= _drawn(record["decoding"])
        self._run.log(values, step=record["step"])

    def finish(self, summary: Record | None = None, image: Path | None = None) -> None:
        """Ends the run, with its summary and the picture of its curves where it reached its end."""
        if self._run is None:
            return
        if summary is not None:
            self._run.summary.update(_flat(summary))
        if image is not None:
            import wandb

            self._run.log({"report": wandb.Image(str(image))})
        self._run.finish()


def _wandb_identity(directory: Path) -> str:
    path = directory / "wandb_id"
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex[:8])
    return path.read_text().strip()


def _drawn(decoding: Record) -> dict[str, Any]:
    """Tables of samples and of modes by figures, and a plot of acceptance by position in the block."""
    modes = decoding["modes"]
    objects = {"decoding/figures": _table([{"mode": mode, **_numbers(modes[mode])} for mode in modes])}
    if decoding["samples"]:
        objects["decoding/samples"] = _table(decoding["samples"])
    if accepted := {mode: figures["acceptance"] for mode, figures in modes.items() if figures.get("acceptance")}:
        objects["decoding/acceptance"] = _acceptance_plot(accepted)
    return objects


def _numbers(figures: Record) -> Record:
    """The figures of a mode without those by position."""
    return {name: value for name, value in figures.items() if not isinstance(value, dict)}


def _acceptance_plot(accepted: dict[str, dict[str, float]]) -> Any:
    """A line per mode over positions in the block."""
    from wandb import plot

    return plot.line_series(
        xs=[[int(position) for position in shares] for shares in accepted.values()],
        ys=[list(shares.values()) for shares in accepted.values()],
        keys=list(accepted),
        title="share of drafts accepted, by position in the block",
        xname="position",
    )


def _table(rows: list[Record]) -> Any:
    """Columns are named by the first row."""
    import wandb

    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])


def _flat(record: Record, prefix: str = "") -> Record:
    """Nested dicts as keys with slashes; None is left out."""
    flat: Record = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
