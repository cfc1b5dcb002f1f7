"""A conversion in a process of its own, which prints its largest anonymous memory before and during it, in bytes.

memory_of_conversion.py import|export|verify SOURCE DESTINATION
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from checkpoint_convert.verify import verify


def anonymous_memory() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Watch:
    """Samples the memory of this process until `stop`."""

    def __init__(self) -> None:
        self.largest, self.samples = 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._done.wait(0.005):
            self.largest = max(self.largest, anonymous_memory())
            self.samples += 1

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


def main(command: str, source: Path, destination: Path) -> None:
    before = anonymous_memory()
    watch = Watch()
    if command == "import":
        import_checkpoint(source, destination, report=lambda _: None)
    elif command == "export":
        export_checkpoint(source, destination, "nld", dtype="fp32", report=lambda _: None)
    else:
        assert verify(source, destination).agrees
    watch.stop()
    print(json.dumps({"before": before, "largest": watch.largest, "samples": watch.samples}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
