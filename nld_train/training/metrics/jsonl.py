"""`metrics.jsonl`: what a run measured at each step; summary, report and status are made from it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nld_train.errors import UserError
from nld_train.files import open_regular, set_aside, synchronise, write_atomically
from nld_train.outside_json import is_finite_number, parse_object

# A line of it: what one step measured.
Record = dict[str, Any]

# Every step has these (docs/training.md). What reads a record relies on them.
_NUMBERS = (
    *("stage_step", "tokens", "step_tokens", "loss", "grad_norm", "learning_rate"),
    *("seconds", "tokens_per_second", "seconds_left"),
)
_NULLABLE = ("ar_loss", "diffusion_loss", "mfu")
# So many damaged lines, or gaps, are named one by one.
_NAMED = 5


@dataclass(frozen=True)
class Content:
    """What a `metrics.jsonl` holds.

    Attributes:
        records: the steps in order, each once.
        problems: what is damaged or missing, in a few words each; empty for a whole file.
    """

    records: list[Record]
    problems: list[str]


class MetricsFile:
    """`metrics.jsonl`: one object per optimizer step, in order, each step once.

    What is damaged or missing in an existing file is printed as a warning on standard error; a file that cannot be read
    is renamed, and a new one begun: the weights of the run do not depend on it.

    Args:
        path: of the file.
        last_step: later ones are dropped from an existing file: a run that continues from a checkpoint repeats them.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        try:
            content = read_metrics(path, reached=last_step, later=False)
        except OSError as error:
            if path.is_file() and not isinstance(error, PermissionError):
                raise
            moved = set_aside(path)
            content = Content([], [f"cannot be read ({error.strerror}), renamed to {moved.name}"])
        for problem in content.problems:
            print(f"warning: {path}: {problem}; the run continues", file=sys.stderr)
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in content.records))
        synchronise(path.parent)
        # Without a buffer, whose content a full disk would refuse a second time when the file is closed.
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Appends a step and hands it to the operating system.

        Raises:
            OSError: it cannot be written; a part of its line may be.
        """
        line = json.dumps(record).encode() + b"\n"
        while line:
            line = line[self._file.write(line) :]

    def synchronise(self) -> None:
        """Returns when all steps are on the disk and survive a loss of power."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path, most_bytes: int | None = None, reached: int = 0, later: bool = True) -> Content:
    """The steps in a `metrics.jsonl`, which may be being written; none where there is no file.

    A last line without an end is still being written, or was when the run died, and is no damage.

    Args:
        path: of the file.
        most_bytes: how much of its end is read; None for all of it. A first line that this cuts is left out.
        reached: a step that the run has reached, up to which the file should have all.
        later: whether later ones are kept.

    Raises:
        OSError: it cannot be read.
    """
    whole, lines, unfinished = _read_lines(path, most_bytes)
    parsed = [_parse(line) for line in lines]
    damaged = [number for number, record in enumerate(parsed, start=1) if record is None and lines[number - 1].strip()]
    by_step = {record["step"]: record for record in (*parsed, _parse(unfinished)) if record is not None}
    records = [by_step[step] for step in sorted(by_step) if later or step <= reached]
    return Content(records, [*_damages(damaged, whole), *_gaps(records, whole, reached)])


def _read_lines(path: Path, most_bytes: int | None) -> tuple[bool, list[bytes], bytes]:
    """Whether the whole file was read, its lines, and a last one without an end."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            start = 0 if most_bytes is None else max(0, size - most_bytes)
            file.seek(start)
            *lines, unfinished = file.read().split(b"\n")
    except FileNotFoundError:
        return True, [], b""
    return start == 0, lines[1:] if start else lines, unfinished


def _parse(line: bytes) -> Record | None:
    """None for a line that is no record of a step, such as zeros after a crash of the file system."""
    try:
        record = parse_object(line, "")
    except UserError:
        return None
    if not isinstance(record.get("stage"), str) or type(record.get("step")) is not int:
        return None
    numbers = all(_is_number(record.get(name)) for name in _NUMBERS)
    return (
        record if numbers and all(record.get(name) is None or _is_number(record[name]) for name in _NULLABLE) else None
    )


def _is_number(value: Any) -> bool:
    return is_finite_number(value) or isinstance(value, float)


def _damages(numbers: Sequence[int], whole: bool) -> list[str]:
    if not numbers:
        return []
    if not whole:
        return [f"{len(numbers)} lines near its end are damaged"]
    return [f"{listed('line', numbers, len(numbers))} damaged"]


def _gaps(records: Sequence[Record], whole: bool, reached: int) -> list[str]:
    """The steps that are missing: before the first record of a whole file, between records, and up to a step."""
    steps = [record["step"] for record in records]
    borders = [*([0] if whole else []), *steps, *([reached + 1] if not steps or reached > steps[-1] else [])]
    gaps = [(one + 1, other - 1) for one, other in pairwise(borders) if other - one > 1]
    if not gaps:
        return []
    names = [str(first) if first == end else f"{first} to {end}" for first, end in gaps]
    return [f"{listed('step', names, sum(end - first + 1 for first, end in gaps))} missing"]


def listed(noun: str, names: Sequence[object], count: int) -> str:
    """Subject and verb of a sentence: the first few of some things by name."""
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    shown = ", ".join([*map(str, names[:_NAMED]), *more])
    return f"{noun} {shown} is" if count == 1 else f"{noun}s {shown} are"
