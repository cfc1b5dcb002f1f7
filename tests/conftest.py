"""What several packages of tests share. The slow references in `naive.py` beside this file can be imported by name."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from balance import ByFile, Recorder, arrange
from forked import owner_of_run, remove_folder, start_server_early
from tiny_runs import composed

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

owner_of_run()  # decided before any worker starts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help="write tests/durations.json anew")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-durations") and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Recorder())
    if getattr(config.option, "dist", "no") != "no" and "PYTEST_XDIST_WORKER" not in os.environ:
        start_server_early()


def pytest_unconfigure() -> None:
    remove_folder()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    arrange(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def streams_stay_open() -> None:
    """Megatron-Core 0.19 imports absl, whose log handler closes the stream that it has when Hydra sets up logging.

    That is pytest's, where a test captures output by a stream of its own.
    """
    if find_spec("absl") is not None:
        from absl import logging

        logging.get_absl_handler().python_handler.stream = sys.__stderr__


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
    from nld_train.training.loop.parallel import parallel_groups

    with parallel_groups(composed("execution.device=cpu")) as device:
        yield device
