"""What several packages of tests share. The slow references in `naive.py` beside this file can be imported by name."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch
from forked import owner_of_run

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

owner_of_run()  # decided before any worker starts

# What takes longest begins first, so that no worker is left alone with it; what starts many processes comes after the
# quickstart and what runs beside that.
FIRST = ("test_quickstart.py", "test_readme.py", "test_layout_parity.py", "test_runs_of_many_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread here and in every process that a test starts: sums over more threads round differently."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def groups() -> Iterator[torch.device]:
    """Megatron's groups with this process alone, on the CPU. One module long: some tests start groups of their own."""
    from nld_train.config.compose import compose_config
    from nld_train.training.loop.parallel import parallel_groups

    with parallel_groups(compose_config(["execution.device=cpu"])) as device:
        yield device
