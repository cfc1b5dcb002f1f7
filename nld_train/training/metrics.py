"""What a run says of itself: a line per step on the console, `metrics.jsonl`, and Weights & Biases."""

from __future__ import annotations

import json
import os
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from nld_train.config.load import config_to_dict
from nld_train.config.schema import Config
from nld_train.files import write_atomically

Record = dict[str, Any]


class MetricsFile:
    """`metrics.jsonl`: one object per optimizer step, in order, each step once.

    Args:
        path: of the file.
        last_step: steps beyond it are dropped from an existing file: a run that continues from a checkpoint makes them
            again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [record for record in read_records(path) if record["step"] <= last_step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        """Appends a step and hands it to the operating system at once."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """The steps of a `metrics.jsonl`; empty where there is none. A last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise
    return records


class ConsoleLog:
    """One line per step on rank 0's terminal."""

    def __init__(self, total_steps: int, every: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.total_steps = total_steps
        self.every = every

    def write(self, record: Record) -> None:
        """Prints a step if its turn has come, and what was measured after it whenever there was something."""
        if record["step"] % self.every == 0 or record["step"] == self.total_steps:
            self.console.print(step_line(record, self.total_steps), markup=False)
        if "validation" in record:
            self.console.print(validation_line(record["validation"]), style="cyan", markup=False)
        for line in decoding_lines(record["decoding"]) if "decoding" in record else ():
            self.console.print(line, style="cyan", markup=False)

    def say(self, text: str) -> None:
        """Prints a line that belongs to no step."""
        self.console.print(text, markup=False)


def step_line(record: Record, total_steps: int) -> str:
    """Stage, step, tokens, loss, raw terms or accepted length, gradient norm, learning rate, speed, time left."""
    parts = [
        f"{record['stage']:<6} step {record['step']:>{len(str(total_steps))}}/{total_steps}",
        f"tokens {human(record['tokens'])}",
        f"loss {record['loss']:.4f}",
    ]
    for name, loss in (("ar", "ar_loss"), ("diffusion", "diffusion_loss")):
        if record[loss] is not None:
            parts.append(f"{name} {record[loss]:.4f}")
    if "drafter" in record:
        parts.append(f"accepted length {record['drafter']['accepted_length']:.3f}")
    parts += [
        f"grad {record['grad_norm']:.3f}",
        f"lr {record['learning_rate']:.2e}",
        f"{human(record['tokens_per_second'])} tok/s",
    ]
    if record["mfu"] is not None:
        parts.append(f"mfu {record['mfu']:.1%}")
    return "  ".join([*parts, f"left {timedelta(seconds=round(record['seconds_left']))}"])


def validation_line(validation: Record) -> str:
    """Held-out losses: AR, and diffusion by noise level."""
    levels = "  ".join(f"t={level} {loss:.4f}" for level, loss in validation["diffusion_loss"].items())
    return f"       validation  ar {validation['ar_loss']:.4f}" + (f"  diffusion {levels}" if levels else "")


def decoding_lines(decoding: Record) -> list[str]:
    """A line per mode: tokens per forward, speed, agreement with AR; the first says what share of the time it takes."""
    lines = [
        f"       {mode:<10}  {figures['tokens_per_forward']:.2f} tokens/forward  "
        f"{human(figures['tokens_per_second'])} tok/s  agreement with ar {figures['agreement']:.0%}"
        for mode, figures in decoding["modes"].items()
    ]
    lines[0] += f"  ({decoding['seconds']:.1f} s, decoding is {decoding['share']:.1%} of the time so far)"
    return lines


def human(number: float) -> str:
    """A count in three digits: 1.05M."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


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
        """Logs a step."""
        if self._run is None:
            return
        values = _flat(record)
        if samples := values.pop("decoding/samples", []):
            values["decoding/samples"] = _table(samples)
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


def _table(rows: list[dict[str, str]]) -> Any:
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


class Metrics:
    """All the places where a step is written; only rank 0 has any.

    Args:
        config: the run.
        rank: of this process.
        total_steps: of the whole run.
        last_step: the step from which the run goes on.
    """

    def __init__(self, config: Config, rank: int, total_steps: int, last_step: int) -> None:
        self._console = ConsoleLog(total_steps, config.logging.every) if rank == 0 else None
        self._file = MetricsFile(Path(config.run.dir) / "metrics.jsonl", last_step) if rank == 0 else None
        self._wandb = WandbLog(config) if rank == 0 else None

    def write(self, record: Record) -> None:
        """Writes a step everywhere."""
        for place in (self._file, self._console, self._wandb):
            if place is not None:
                place.write(record)

    def say(self, text: str) -> None:
        """Prints a line on rank 0's terminal."""
        if self._console is not None:
            self._console.say(text)

    def close(self, summary: Record | None = None, image: Path | None = None) -> None:
        """Closes the file and ends the Weights & Biases run."""
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(summary, image)


def require_writable(directory: Path) -> None:
    """Makes the run's directory.

    Raises:
        OSError: it cannot be made or written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".writable-{os.getpid()}"
    probe.touch()
    probe.unlink()
