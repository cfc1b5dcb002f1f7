"""This process among others: its rank under torchrun, and its end with the process that started it. No torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Global rank; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def exit_with_parent() -> None:
    """Makes a process that `multiprocessing` has started end when the process that started it is gone.

    Called in the new process. A parent that is killed sends nothing, and a child that waits for it in a queue would
    wait for ever: the children hold the ends of each other's pipes, so none of them is closed.
    """
    import threading

    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _wait_for_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None, "only a process that multiprocessing has started has a parent"
    parent.join()
    os._exit(1)
