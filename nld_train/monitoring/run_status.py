"""The status of a run: everything `nld-status` shows, from the files of the run's directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from nld_train.config.plan import stage_plans, total_steps
from nld_train.config.schema import Config
from nld_train.errors import UserError
from nld_train.monitoring.checkpoints import CheckpointState, being_written, checkpoint_states, settings_of
from nld_train.monitoring.spikes import find_spikes
from nld_train.training.checkpoint.paths import CONFIG_FILE
from nld_train.training.metrics.jsonl import Content, Record
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.step_numbers import STEP_NUMBERS
from nld_train.training.run_lock import LOCK_FILE, living_owner

Status = dict[str, Any]
# Steps over which the speed and the last losses are taken.
_RECENT = 20
# Of the end of `metrics.jsonl`: some ten thousand steps. The whole file of a long run is hundreds of megabytes.
_TAIL_BYTES = 8 << 20
_LAST_LOSSES = 10
# A run that has written nothing for the time of this many usual steps, and at least this long, may be dead. Validation,
# decoding and the saving of a checkpoint take longer than a step.
_SILENT_STEPS, _SILENT_SECONDS = 20, 300.0


def run_status(directory: Path, read_all: bool = False) -> Status:
    """The status of the run in a directory, as plain values; None where something is not known.

    Args:
        directory: `run.dir`.
        read_all: compare the checksums of the newest checkpoint.

    Raises:
        UserError: there is no run in the directory.
    """
    metrics = directory / "metrics.jsonl"
    require_run(directory)
    checkpoints = checkpoint_states(directory, read_all)
    content = _read_tail(metrics, checkpoints)
    records = content.records
    config = settings_of(directory, checkpoints)
    now, last = time.time(), records[-1] if records else None
    age = now - metrics.stat().st_mtime if metrics.exists() else None
    result = {
        "directory": str(directory),
        "name": None if config is None else config.run.name,
        "total_steps": None if config is None else total_steps(config),
        "process": _process(directory),
        "seconds_since_last_record": age,
        "checkpoints": [asdict(state) | {"path": str(state.path)} for state in checkpoints],
        "unfinished_checkpoints": being_written(directory),
        "last": None if last is None else _last(last, records, config),
        "spikes": [asdict(spike) for spike in find_spikes(records)],
        "steps_searched_for_spikes": len(records),
        "problems": [f"metrics.jsonl: {problem}" for problem in content.problems],
    }
    return result | {"state": _state(result, records, directory, now)}


def _read_tail(metrics: Path, checkpoints: Sequence[CheckpointState]) -> Content:
    """The last steps, which should reach the newest sound checkpoint; none where the file cannot be read."""
    reached = max((state.step for state in checkpoints if state.damage is None), default=0)
    try:
        return MetricTable().read(metrics, _TAIL_BYTES, reached)
    except OSError as error:
        return Content([], [f"cannot be read ({error.strerror})"])


def require_run(directory: Path) -> None:
    """Refuses a directory that is not `run.dir` of a run.

    Raises:
        UserError: it is none.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: is no directory; name the run.dir of a run")
    if (directory / "metrics.jsonl").exists() or (directory / "checkpoints").is_dir():
        return
    inside = sorted(path.parent.name for path in directory.glob("*/metrics.jsonl"))
    hint = f"; it has runs inside: {', '.join(inside[:10])}" if inside else ""
    raise UserError(f"{directory}: is no run: it has neither metrics.jsonl nor checkpoints{hint}")


def _last(last: Record, records: Sequence[Record], config: Config | None) -> Status:
    """Figures of the last step and of the steps just before it, in the same stage."""
    same_stage = [record for record in records if record["stage"] == last["stage"]]
    seconds = median(record["seconds"] for record in same_stage[-_RECENT:])
    names = ("stage", "step", "stage_step", "tokens", "learning_rate", "grad_norm", "mfu")
    return {name: last[name] for name in names} | {
        "stage_steps": None if config is None else _stage_steps(config, last["stage"]),
        "seconds_per_step": seconds,
        "tokens_per_second": last["step_tokens"] / seconds,
        "seconds_left": last["seconds_left"],
        **{name: _mean(same_stage[-_LAST_LOSSES:], name) for name in ("loss", "ar_loss", "diffusion_loss")},
        **_newest(records),
    }


def _stage_steps(config: Config, stage: str) -> int | None:
    return next((plan.steps for plan in stage_plans(config) if plan.name == stage), None)


def _mean(records: Sequence[Record], name: str) -> float | None:
    values = [record[name] for record in records if record[name] is not None]
    return fmean(values) if values else None


def _newest(records: Sequence[Record]) -> Status:
    """The newest value of every metric besides the numbers of each step, by name; None where there is none yet."""
    table = MetricTable()
    step_numbers = {number.name for number in STEP_NUMBERS}
    newest = {name: record for record in records for name in record if name not in step_numbers}
    return dict.fromkeys(table.measured) | {name: table[name].status(newest[name]) for name in newest}


def _process(directory: Path) -> Status | None:
    """The process that runs the run, and its host; None where there is none, or it cannot be found out."""
    try:
        owner = living_owner(directory)
    except OSError:
        return None
    return None if owner is None else {"process": owner.process, "host": owner.host}


def _state(result: Status, records: Sequence[Record], directory: Path, now: float) -> str:
    """`finished`, `stopped` (saved, ended regularly), `died`, `not started`, `starting`, `running` or `silent`."""
    last, running = result["last"], result["process"] is not None
    if last is not None and last["step"] == result["total_steps"] and _is_saved(last["step"], result):
        return "finished"
    if not running and last is not None and _ended_regularly(directory):
        return "stopped"
    # Earlier versions wrote neither; of their runs it is not known whether they are running.
    if not running and any((directory / name).exists() for name in (LOCK_FILE, CONFIG_FILE)):
        return "died"
    if last is None:
        return "starting" if running else "not started"
    usual = max(record["seconds"] for record in records[-_RECENT:])
    quiet = now - (directory / "metrics.jsonl").stat().st_mtime
    return "silent" if quiet > max(_SILENT_SECONDS, _SILENT_STEPS * usual) else "running"


def _is_saved(step: int, result: Status) -> bool:
    return any(entry["step"] == step and entry["damage"] is None for entry in result["checkpoints"])


def _ended_regularly(directory: Path) -> bool:
    """A run that ends regularly writes the summary last; a resumed run first rewrites metrics.jsonl."""
    summary = directory / "summary.json"
    return summary.exists() and summary.stat().st_mtime >= (directory / "metrics.jsonl").stat().st_mtime
