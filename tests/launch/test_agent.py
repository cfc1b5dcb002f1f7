"""torchrun's agent: signals before it has started anything, a port that is in use, ranks that were stopped."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from forked import run_forked
from slow_import import interrupted_import
from tiny_runs import TESTS

LAUNCH = TESTS.parent / "launch"


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(LAUNCH)
    return importlib.import_module("node_agent")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_an_agent_that_is_signalled_while_it_imports_has_nothing_to_save(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    found, printed = interrupted_import(tmp_path, number, "psutil", str(LAUNCH / "agent.py"))
    assert printed == (
        f"stopped by {number.name}: nothing to save yet (exit code {status}); the same command starts it again\n"
    )
    assert found == status


@pytest.mark.long
def test_agents_whose_port_is_in_use_name_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = f"127.0.0.1:{other.getsockname()[1]}"
        words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
        words += ["--rdzv-conf", "is_host=1", "-m", "nld_train.train"]
        done = run_forked([str(LAUNCH / "agent.py"), *words], 60, tmp_path)
    assert done.status == 1
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert f"cannot meet at {endpoint}" in line
    assert "MASTER_PORT" in line
    assert "Traceback" not in done.output


def test_a_stopped_rank_is_named(agent: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"RANK": "3"}) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.01)
            agent._watch.looked_at = 0.0
            agent._look_for_stopped()
            agent._report_stopped()
        finally:
            process.kill()
    line = f"error: rank 3 on {socket.gethostname()} (process {process.pid}) was stopped\n"
    assert line in capfd.readouterr().err


@pytest.mark.parametrize(
    ("exitcode", "signalled", "status"),
    [
        (-signal.SIGTERM, {signal.SIGTERM}, 75),
        (-signal.SIGUSR1, {signal.SIGUSR1}, 75),
        (-signal.SIGTERM, set(), 128 + signal.SIGTERM),
        (75, {signal.SIGTERM}, 75),
    ],
)
def test_a_process_that_a_passed_on_signal_ends_before_it_handles_it_is_requeued(
    agent: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exitcode: int, signalled: set[int], status: int
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    monkeypatch.setattr(agent, "_watch", agent._Watch(signalled=signalled))
    failure = ProcessFailure(0, os.getpid(), exitcode, str(tmp_path / "error.json"))
    assert agent._report(0, failure) == status
