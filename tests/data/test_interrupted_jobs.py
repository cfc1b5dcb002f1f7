"""Ctrl-C while worker processes have jobs: no lock stays locked, for which anything would wait for ever."""

from __future__ import annotations

from forked import run_forked


def test_an_interrupt_while_all_results_are_locked_ends_the_jobs() -> None:
    found = run_forked(["call", "interrupted_jobs", "main", "[]"], timeout=60)
    assert found.output.startswith("interrupted after ")
    assert found.output.endswith("signal sent: True\n")
    assert found.status == 0
