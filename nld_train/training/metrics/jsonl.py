"""`metrics.jsonl`: what a run measured at each step; summary, report and status are made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nld_train.files import write_atomically

# A line of it: what one step measured.
Record = dict[str, Any]


class MetricsFile:
    """`metrics.jsonl`: one object per optimizer step, in order, each step once.

    Args:
        path: of the file.
        last_step: later ones are dropped from an existing file: a run that continues from a checkpoint repeats them.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [record for record in read_records(path) if record["step"] <= last_step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        """Appends a step and flushes it to the operating system."""
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
