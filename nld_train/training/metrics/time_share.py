"""What measuring costs: the time of what a run does between its steps, as a share of all its time."""

from __future__ import annotations

import time

from nld_train.training.metrics.jsonl import Record


class TimeShare:
    """Adds up the time of one kind of measurement, from the start of this process's run on."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._spent = 0.0

    def since(self, begin: float) -> Record:
        """Counts a measurement that has just ended.

        Args:
            begin: `time.perf_counter()` at its beginning.

        Returns:
            Its `seconds`; and `share`, all such seconds over the time since this start of the run, from 0 to 1.
        """
        now = time.perf_counter()
        self._spent += now - begin
        return {"seconds": now - begin, "share": self._spent / (now - self._begin)}
