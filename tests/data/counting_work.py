"""Work for `nld_train.data.workers` that reports progress. Worker processes import it."""

from __future__ import annotations

import time

from nld_train.progress import Advance


class CountingWork:
    """A job is a number, which it reports several times.

    Args:
        times: how often.
    """

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, job: int, advance: Advance) -> int:
        for _ in range(self.times):
            time.sleep(0.06)
            advance(job)
        return self.times * job
