"""The end of a `metrics.jsonl` of any length, read while it is being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]

# Some ten thousand steps. The whole file of a long run is hundreds of megabytes.
TAIL_BYTES = 8 << 20


def last_records(path: Path, most_bytes: int = TAIL_BYTES) -> list[Record]:
    """The last steps of a `metrics.jsonl`, oldest first; empty where there is none.

    Left out are a first line that was cut by the limit and a last one that is still being written, or was when the run
    died.

    Args:
        path: of the file.
        most_bytes: how much of its end is read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - most_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    whole = lines[1 if start > 0 else 0 : -1]
    return [record for line in whole if (record := _parse(line)) is not None]


def _parse(line: bytes) -> Record | None:
    """None for a line that is no JSON object, such as zeros after a crash of the file system."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None
