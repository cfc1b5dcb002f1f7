"""What a run measured up to a checkpoint, for the model card: held-out losses, and the decode modes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoint_convert.checkpoints import Record
from nld_train.errors import UserError
from nld_train.outside_json import is_finite_number, read_object
from nld_train.printable import markdown
from nld_train.training.checkpoint.paths import find_checkpoint
from nld_train.training.metrics.registry import MetricTable

# Files of a run, beside `checkpoints/`.
_METRICS, _SCORES = "metrics.jsonl", "scores.json"


def results(record: Record) -> list[str]:
    """The section of the card; empty where nothing was measured, or the run's own files are not beside the checkpoint.

    The files of a run can go on after the checkpoint: only steps up to its own count.
    """
    if record.directory.parent.name != "checkpoints":
        return []
    run, step = record.directory.parent.parent, record.progress.get("step", 0)
    measured = [found for found in MetricTable().read(run / _METRICS).records if found["step"] <= step]
    # Scores name no checkpoint: they are those of the newest one.
    newest = find_checkpoint(run) == record.directory
    tables = [*_losses(measured), *_modes(measured), *(_scores(run / _SCORES) if newest else [])]
    return ["## Results", "", *tables] if tables else []


def _losses(records: Sequence[dict[str, Any]]) -> list[str]:
    """The last held-out losses of each stage, in nats per token."""
    last = {found["stage"]: found["validation"] for found in records if "validation" in found}
    if not last:
        return []
    levels = list(dict.fromkeys(level for value in last.values() for level in value["diffusion_loss"]))
    rows = [
        [stage, f"{value['ar_loss']:.4f}", *(_number(value["diffusion_loss"].get(level), ".4f") for level in levels)]
        for stage, value in last.items()
    ]
    return ["Held-out losses in nats per token:", "", *_table(["Stage", "AR", *(f"t = {x}" for x in levels)], rows)]


def _modes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Decode modes on held-out prompts, at the last decoding."""
    measured = [found["decoding"]["modes"] for found in records if "decoding" in found]
    if not measured:
        return []
    figures = {"tokens_per_forward": ("Tokens per forward", ".2f"), "agreement": ("Equal to AR", ".1%")}
    figures |= {"exact": ("Exact", ".1%")}
    shown = {name: form for name, form in figures.items() if any(name in mode for mode in measured[-1].values())}
    rows = [
        [name, *(_number(mode.get(figure), form) for figure, (_, form) in shown.items())]
        for name, mode in measured[-1].items()
    ]
    heads = ["Mode", *(head for head, _ in shown.values())]
    return ["Decoding of held-out prompts:", "", *_table(heads, rows)]


def _scores(path: Path) -> list[str]:
    """Answers to questions with one right answer: exact, and tokens per forward, by decode mode and kind."""
    if not path.is_file():
        return []
    try:
        scores = read_object(path)
    except UserError:
        return []
    modes = {name: kinds for name, kinds in scores.items() if isinstance(kinds, dict)}
    kinds = dict.fromkeys(kind for each in modes.values() for kind, value in each.items() if isinstance(value, dict))
    if not kinds:
        return []
    rows = [[kind, *(_score(each.get(kind)) for each in modes.values())] for kind in kinds]
    head = "Held-out questions with one right answer: exact answers, at tokens per forward."
    return [head, "", *_table(["Kind", *modes], rows)]


def _score(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    return f"{_number(value.get('exact'), '.1%')} at {_number(value.get('tokens_per_forward'), '.2f')}"


def _number(value: Any, form: str) -> str:
    return f"{value:{form}}" if is_finite_number(value) else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [*(f"| {' | '.join(markdown(cell) if cell != '---' else cell for cell in line)} |" for line in lines), ""]
