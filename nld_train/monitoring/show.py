"""The standing of a run as a table for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from nld_train.monitoring.run_status import Standing

_STATES = {
    "not started": "no step yet",
    "running": "running",
    "silent": "silent for longer than usual: perhaps dead",
    "stopped": "stopped, saved; the same command goes on",
    "finished": "finished",
}
_SPIKES_SHOWN = 5
# Also where there is no terminal to ask.
_WIDTH = 120


def show(standing: Standing) -> None:
    """Prints the table to standard output."""
    table = Table(box=None, show_header=False, title=standing["directory"], title_justify="left", title_style="bold")
    for name, value in _rows(standing):
        table.add_row(name, value)
    Console(width=_WIDTH, highlight=False, markup=False).print(table)


def _rows(standing: Standing) -> Iterator[tuple[str, str]]:
    age, last = standing["seconds_since_last_record"], standing["last"]
    yield "state", _STATES[standing["state"]]
    if age is not None and last is not None:
        yield "last record", f"{_duration(age)} ago"
    if last is not None:
        yield from _progress(standing)
        yield from _losses(standing)
    yield from _checkpoints(standing)
    yield "spikes", _spikes(standing)


def _progress(standing: Standing) -> Iterator[tuple[str, str]]:
    last, total = standing["last"], standing["total_steps"]
    of_stage = f" of {last['stage_steps']:,}" if last["stage_steps"] else ""
    yield "stage", f"{last['stage']}, step {last['stage_step']:,}{of_stage}"
    done = (
        f" of {total:,} ({last['step'] / total:.1%})" if total else " (of how many is known with the first checkpoint)"
    )
    yield "step", f"{last['step']:,}{done}"
    yield "tokens", f"{last['tokens']:,}"
    mfu = "" if last["mfu"] is None else f", FLOP utilisation {last['mfu']:.1%}"
    yield "rate", f"{last['tokens_per_second']:,.0f} tokens/s, {last['seconds_per_step']:.3g} s per step{mfu}"
    if standing["state"] != "finished":
        yield "time left", _duration(last["seconds_left"]) + ("" if standing["state"] == "running" else " once it runs")


def _losses(standing: Standing) -> Iterator[tuple[str, str]]:
    last = standing["last"]
    # A drafter stage has neither term.
    terms = (("AR", last["ar_loss"]), ("diffusion", last["diffusion_loss"]))
    known = ", ".join(f"{name} {value:.4f}" for name, value in terms if value is not None)
    yield "last losses", f"{last['loss']:.4f}{': ' if known else ''}{known} (mean of the last steps)"
    yield "gradient", f"norm {last['grad_norm']:.3f}, learning rate {last['learning_rate']:.2e}"
    if (validation := last["validation"]) is not None:
        levels = "".join(f", t={level} {loss:.4f}" for level, loss in validation["diffusion_loss"].items())
        yield "validation", f"AR {validation['ar_loss']:.4f}{levels} (step {validation['step']:,})"
    if (decoding := last["decoding"]) is not None:
        modes = ", ".join(f"{mode} {figures['tokens_per_forward']:.2f}" for mode, figures in decoding["modes"].items())
        yield "tokens per forward", f"{modes} (step {decoding['step']:,})"


def _checkpoints(standing: Standing) -> Iterator[tuple[str, str]]:
    if not standing["checkpoints"]:
        yield "checkpoint", "none yet"
    for entry in standing["checkpoints"]:
        sound = "sound" if entry["damage"] is None else f"DAMAGED, will be passed over: {entry['damage']}"
        ends = ", ends the stage" if entry["ends_stage"] else ""
        age = _duration(time.time() - entry["written"])
        yield "checkpoint", f"step {entry['step']:,} of the run ({entry['stage']}{ends}), {age} ago, {sound}"
    for name in standing["unfinished_checkpoints"]:
        yield "", f"{name} is being written, or was when the run died"


def _spikes(standing: Standing) -> str:
    spikes, searched = standing["spikes"], standing["steps_searched_for_spikes"]
    if not spikes:
        return f"none in the last {searched:,} steps"
    shown = ", ".join(
        f"{spike['quantity']} {spike['value']:.3g} at step {spike['step']:,} (usual {spike['usual']:.3g})"
        for spike in spikes[-_SPIKES_SHOWN:]
    )
    return f"{len(spikes)} in the last {searched:,} steps; {shown}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
