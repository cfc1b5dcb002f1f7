"""Signals: exit codes, saved state, and a next start that continues as if there had been none."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from children import Child, ranks
from forked import Forked
from run_equality import assert_same_run
from tiny_runs import SHORT, composed, newest_checkpoint, records_of, short_stages
from training_runs import Train

from nld_train.config.plan import stage_plans
from nld_train.data.batches import batches
from nld_train.data.order import stage_orders
from nld_train.data.samples import training_samples
from nld_train.errors import UserError
from nld_train.training.loop.parallel import _torchrun_store

STEPS = 16
# Longer than such a step takes: of those that are left when a signal is sent, some are left when it arrives.
STEP_SECONDS = 0.25
SETTINGS = (*SHORT, *short_stages(STEPS // 2, STEPS // 2), "checkpoint.every=1000")
# The first of the weight files, which another thread writes, and the naming of the newest.
FIRST_SHARD, LATEST = r"open .*\.distcp", r"open .*/\.latest"
REQUEUE, INTERRUPT = 75, 130


@pytest.fixture(scope="module")
def never_stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("whole"), *SETTINGS)


def assert_saved_where_it_stopped(directory: Path) -> None:
    steps = records_of(directory)[-1]["step"]
    assert 0 < steps < STEPS
    assert newest_checkpoint(directory).name == f"step_{steps:08d}"


@pytest.mark.parametrize(
    ("number", "status", "step"),
    [
        (signal.SIGTERM, REQUEUE, 2),
        pytest.param(signal.SIGUSR1, REQUEUE, STEPS // 2 + 3, marks=pytest.mark.long),
        (signal.SIGINT, INTERRUPT, 5),
    ],
)
def test_it_saves_and_leaves(
    train: Train, data: tuple[str, ...], never_stopped: Path, tmp_path: Path, number: int, status: int, step: int
) -> None:
    child = Child(tmp_path / "run", (*data, *SETTINGS), step_seconds=STEP_SECONDS)
    child.wait_for_step(step)
    child.signal(number)
    assert child.wait() == status, child.output()
    assert f"stopped by a signal, saved (exit code {status})" in child.output()
    assert "Traceback" not in child.output()
    assert_saved_where_it_stopped(tmp_path / "run")
    assert_same_run(train(tmp_path / "run", *SETTINGS), never_stopped)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(one, marks=pytest.mark.long) for one in (signal.SIGTERM, signal.SIGUSR1))]
)
def test_data_workers_outlive_it(data: tuple[str, ...], tmp_path: Path, number: int) -> None:
    """What a terminal, or Slurm, sends to all processes of a job."""
    child = Child(tmp_path / "run", (*data, *SETTINGS, "data.workers=1"), step_seconds=STEP_SECONDS)
    child.wait_for_step(2)
    child.signal_group(number)
    assert child.wait() == (INTERRUPT if number == signal.SIGINT else REQUEUE), child.output()
    assert "Traceback" not in child.output()
    assert_saved_where_it_stopped(tmp_path / "run")


@pytest.mark.long
def test_a_killed_run_leaves_no_process(data: tuple[str, ...], tmp_path: Path) -> None:
    """Data workers, their fork server and Python's resource tracker go, with their semaphores and sockets."""
    with tempfile.TemporaryDirectory() as sockets:  # a short path: that of a socket has at most 107 bytes
        settings = (*data, *SETTINGS, "data.workers=2")
        child = Child(tmp_path / "run", settings, step_seconds=STEP_SECONDS, environment={"TMPDIR": sockets})
        child.wait_for_step(1)
        started = psutil.Process(child.process.pid).children(recursive=True)
        assert len(started) == 4, started
        semaphores = semaphores_of(started)
        assert semaphores
        child.signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert psutil.wait_procs(started, timeout=20)[1] == []
        assert not any(path.exists() for path in semaphores)
        assert os.listdir(sockets) == []


def semaphores_of(processes: list[psutil.Process]) -> set[Path]:
    """The named semaphores that are mapped into some processes."""
    maps = {mapped.path for process in processes for mapped in process.memory_maps()}
    return {Path(path) for path in maps if path.startswith("/dev/shm/sem.")}


def test_a_sweep_ends_with_the_job_that_was_asked_to_leave(data: tuple[str, ...], tmp_path: Path) -> None:
    child = Child(tmp_path, (*data, *SETTINGS, "--multirun", "batch.micro_size=1,2"), step_seconds=STEP_SECONDS)
    first, second = (tmp_path / f"batch.micro_size-{size}" for size in (1, 2))
    assert child.wait_until(lambda: (first / "metrics.jsonl").exists()), child.output()
    child.signal(signal.SIGTERM)
    assert child.wait() == REQUEUE, child.output()
    assert_saved_where_it_stopped(first)
    assert not second.exists()


@pytest.mark.parametrize("operation", [FIRST_SHARD, LATEST])
def test_a_second_interrupt_leaves_at_once(
    train: Train, data: tuple[str, ...], never_stopped: Path, tmp_path: Path, operation: str
) -> None:
    """Even while the checkpoint for the first is being written."""
    child = Child(tmp_path / "run", (*data, *SETTINGS), pause_before=operation, step_seconds=STEP_SECONDS)
    child.wait_for_step(2)
    child.signal(signal.SIGINT)
    assert child.wait_until(lambda: any((tmp_path / "run").glob("checkpoints/step_*")))
    assert child.process.poll(0.5) is None, "the interrupt that saves does not wait for the checkpoint"
    leave_at_once(child)
    assert not (tmp_path / "run" / "checkpoints" / "latest").exists()
    assert_same_run(train(tmp_path / "run", *SETTINGS), never_stopped)


def leave_at_once(child: Child) -> None:
    begin = time.monotonic()
    child.signal(signal.SIGINT)
    assert child.wait() == INTERRUPT, child.output()
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(("rank", "number", "status"), [(0, signal.SIGUSR1, REQUEUE), (1, signal.SIGINT, INTERRUPT)])
def test_all_ranks_leave_after_the_same_step(
    data: tuple[str, ...], tmp_path: Path, rank: int, number: int, status: int
) -> None:
    """Only one of them gets the signal; two processes under other settings than one have other rounding."""
    run = tmp_path / "run"
    pair = ranks(2, run, (*data, *SETTINGS, "batch.micro_size=2"), step_seconds=STEP_SECONDS)
    pair[0].wait_for_step(2)
    pair[rank].signal(number)
    assert [child.wait() for child in pair] == [status, status], [child.output() for child in pair]
    assert_saved_where_it_stopped(run)


def test_a_second_interrupt_leaves_a_rank_that_waits_for_another(data: tuple[str, ...], tmp_path: Path) -> None:
    """Rank 0 never comes to the end of its files, so that rank 1 waits for it outside of Python."""
    overrides = (*data, *SETTINGS, "batch.micro_size=2")
    first, second = ranks(2, tmp_path / "run", overrides, pause_before=FIRST_SHARD, step_seconds=STEP_SECONDS)
    first.wait_for_step(2)
    second.signal(signal.SIGINT)
    assert first.wait_until(lambda: any((tmp_path / "run").glob("checkpoints/*.tmp")))
    assert second.process.poll(2) is None, second.output()
    leave_at_once(second)
    first.process.kill_group()
    assert first.wait() == -signal.SIGKILL


def test_a_data_worker_outlives_one_request(data: tuple[str, ...]) -> None:
    """Even if the training process waits for a batch that the worker has not begun."""
    config = composed(*data, *SETTINGS)
    order = stage_orders(config, stage_plans(config))["ar"]
    of_other_tests = set(multiprocessing.active_children())
    steps = batches(
        training_samples(config, "ar", order),
        first_step=0,
        last_step=50,
        global_size=4,
        micro_size=4,
        workers=1,
    )
    next(steps)
    (worker,) = set(multiprocessing.active_children()) - of_other_tests
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(steps)) == 49


@pytest.mark.long
def test_a_rank_that_is_stopped_is_named_when_the_others_have_waited(data: tuple[str, ...], tmp_path: Path) -> None:
    overrides = (*data, *SETTINGS, "batch.micro_size=2", "execution.timeout_minutes=0.1")
    first, second = ranks(2, tmp_path / "run", overrides, step_seconds=STEP_SECONDS)
    first.wait_for_step(2)
    second.signal(signal.SIGSTOP)
    assert first.wait() == 2, first.output()
    (line,) = [line for line in first.output().splitlines() if line.startswith("error: ")]
    assert "rank 1 does not answer" in line
    assert "execution.timeout_minutes=0.1" in line
    assert "Traceback" not in first.output()
    second.process.kill_group()
    assert second.wait() == -signal.SIGKILL


def test_a_run_whose_port_is_in_use_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", address.rpartition(":")[2])):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match=f"{address}: another program has this port; choose another"):
            _torchrun_store(timedelta(seconds=5))


def test_a_run_whose_terminal_has_gone_continues(data: tuple[str, ...], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    settings = (*data, *SHORT, *short_stages(1, 1), f"run.dir={tmp_path / 'run'}")
    with open(writer, "wb") as pipe, (tmp_path / "errors").open("wb") as errors:
        process = Forked(["-m", "nld_train.train", *settings], pipe, errors=errors)
        assert process.poll(120) == 0, (tmp_path / "errors").read_text()
    said = [line for line in (tmp_path / "errors").read_text().splitlines() if "standard output" in line]
    assert said == ["warning: standard output: Broken pipe; the run continues without it"]
    assert len(records_of(tmp_path / "run")) == 2
