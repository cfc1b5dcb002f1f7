"""The status of a run as a table on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from rich.table import Table

from nld_train.console import plain_console
from nld_train.monitoring.run_status import Status
from nld_train.training.metrics.registry import MetricTable

_STATES = {
    "not started": "no step yet",
    "starting": "starting, no step yet",
    "running": "running",
    "silent": "silent for longer than usual: perhaps dead",
    "died": "ended without saving, killed or after an error; the same command continues from the last checkpoint",
    "stopped": "stopped, saved; the same command continues it",
    "finished": "finished",
}
_SPIKES_SHOWN = 5
# Width of the table, whether or not standard output is a terminal.
_WIDTH = 120


def show(status: Status) -> None:
    """Prints the table to standard output."""
    table = Table(box=None, show_header=False, title=status["directory"], title_justify="left", title_style="bold")
    for name, value in _rows(status):
        table.add_row(name, value)
    plain_console(width=_WIDTH).print(table)


def _rows(status: Status) -> Iterator[tuple[str, str]]:
    age, last = status["seconds_since_last_record"], status["last"]
    yield "state", _STATES[status["state"]]
    if status["process"] is not None:
        yield "process", f"{status['process']['process']} on {status['process']['host']}"
    if age is not None and last is not None:
        yield "last record", f"{_duration(age)} ago"
    if last is not None:
        yield from _progress(status)
        yield from _losses(status)
    yield from _checkpoints(status)
    for problem in status["problems"]:
        yield "DAMAGED", problem
    yield "spikes", _spikes(status)


def _progress(status: Status) -> Iterator[tuple[str, str]]:
    last, total = status["last"], status["total_steps"]
    of_stage = f" of {last['stage_steps']:,}" if last["stage_steps"] else ""
    yield "stage", f"{last['stage']}, step {last['stage_step']:,}{of_stage}"
    done = f" of {total:,} ({last['step'] / total:.1%})" if total else ""
    yield "step", f"{last['step']:,}{done}"
    yield "tokens", f"{last['tokens']:,}"
    mfu = "" if last["mfu"] is None else f", FLOP utilisation {last['mfu']:.1%}"
    yield "rate", f"{last['tokens_per_second']:,.0f} tokens/s, {last['seconds_per_step']:.3g} s per step{mfu}"
    if status["state"] != "finished":
        yield "time left", _duration(last["seconds_left"]) + ("" if status["state"] == "running" else " once it runs")


def _losses(status: Status) -> Iterator[tuple[str, str]]:
    last = status["last"]
    # A drafter stage has neither term.
    terms = (("AR", last["ar_loss"]), ("diffusion", last["diffusion_loss"]))
    known = ", ".join(f"{name} {value:.4f}" for name, value in terms if value is not None)
    yield "last losses", f"{last['loss']:.4f}{': ' if known else ''}{known} (mean of the last steps)"
    yield "gradient", f"norm {last['grad_norm']:.3f}, learning rate {last['learning_rate']:.2e}"
    table = MetricTable()
    for name, newest in last.items():
        # The newest value of a metric brings its step; the other entries are numbers of the last step itself.
        if isinstance(newest, dict):
            title, text = table[name].status_text(newest)
            yield title, f"{text} (step {newest['step']:,})"


def _checkpoints(status: Status) -> Iterator[tuple[str, str]]:
    if not status["checkpoints"]:
        yield "checkpoint", "none yet"
    for entry in status["checkpoints"]:
        sound = "sound" if entry["damage"] is None else f"DAMAGED, will be skipped: {entry['damage']}"
        ends = ", ends the stage" if entry["ends_stage"] else ""
        age = _duration(time.time() - entry["written"])
        yield "checkpoint", f"step {entry['step']:,} of the run ({entry['stage']}{ends}), {age} ago, {sound}"
    for name in status["unfinished_checkpoints"]:
        yield "", f"{name} is being written, or was when the run died"


def _spikes(status: Status) -> str:
    spikes, searched = status["spikes"], status["steps_searched_for_spikes"]
    if not spikes:
        return f"none in the last {searched:,} steps"
    shown = ", ".join(
        f"{spike['quantity']} {spike['value']:.3g} at step {spike['step']:,} (usual {spike['usual']:.3g})"
        for spike in spikes[-_SPIKES_SHOWN:]
    )
    return f"{len(spikes)} in the last {searched:,} steps; {shown}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
