"""The Slurm script over two simulated hosts: real torchrun and training on gloo; Slurm itself is stubs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tiny_runs import TESTS, TINY_MODEL, data_overrides, newest_checkpoint, records_of, two_stages, write_token_set

STUBS = Path(__file__).parent
ROOT = TESTS.parent
# A start takes two processes some 15 seconds to import everything; a loaded machine several times that.
START_SECONDS = 240.0
# From the death of a rank to the end of the job: torchrun gives the other processes 30 seconds.
END_SECONDS = 90.0


@dataclass
class Job:
    """One start of the batch script."""

    process: subprocess.Popen[str]
    output: Path

    def wait(self, seconds: float) -> tuple[int, str, float]:
        """Status, output, and the seconds that it took to end."""
        begin = time.monotonic()
        status = self.process.wait(seconds)
        return status, self.output.read_text(), time.monotonic() - begin

    def worker(self, rank: int) -> psutil.Process:
        """The training process of a rank."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if "nld_train.train" in process.cmdline() and process.environ().get("RANK") == str(rank):
                return process
        raise AssertionError(f"no process of rank {rank}: {self.output.read_text()}")


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the script as Slurm would, on two nodes with a process each; ends what a failed test leaves behind."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    variables |= {
        "PATH": f"{STUBS}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost",
        "REQUEUED": str(tmp_path / "requeued"),
        "LOG_ROOT": str(tmp_path / "logs"),
        "MASTER_PORT": str(port),
        "NODE_ADDRESS": "127.0.0.1",
        "PROCESSES": "1",
    }
    jobs: list[Job] = []

    def run(number: int, *words: str) -> Job:
        output = tmp_path / f"slurm-{number}.out"
        with output.open("w") as file:
            process = subprocess.Popen(
                ["bash", str(ROOT / "launch/slurm.sbatch"), *words],
                env={**variables, "SLURM_RESTART_COUNT": str(number)},
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=tmp_path,
            )
        jobs.append(Job(process, output))
        return jobs[-1]

    yield run
    for job in jobs:
        if job.process.poll() is None:
            for process in [*psutil.Process(job.process.pid).children(recursive=True), job.process]:
                process.kill()


def wait_for_step(directory: Path, step: int, job: Job) -> None:
    deadline = time.monotonic() + START_SECONDS
    metrics = directory / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= step):
        assert job.process.poll() is None, job.output.read_text()
        assert time.monotonic() < deadline, job.output.read_text()
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_job_loses_a_rank_is_requeued_and_ends(start: Start, tmp_path: Path) -> None:
    directory, requeued = tmp_path / "run", tmp_path / "requeued"
    prefix = write_token_set(tmp_path / "tokens", seed=1)
    settings = (
        *TINY_MODEL,
        *data_overrides(prefix),
        *two_stages(1500, 1500),
        "checkpoint.every=5",
        f"run.dir={directory}",
    )

    # A rank is killed: the job ends on both hosts, soon, and says which rank and why.
    first = start(0, *settings)
    wait_for_step(directory, 12, first)
    first.worker(1).kill()
    status, output, seconds = first.wait(END_SECONDS)
    assert status not in (0, 75), output
    assert seconds < END_SECONDS
    assert re.search(r"^1: error: rank 1 on \S+ \(process \d+\) failed first here: killed by SIGKILL$", output, re.M)
    assert "failed with exit code" in output
    assert not requeued.exists()
    assert output.startswith("job 4711, start 0, 2 nodes")
    assert "launch/torchrun.sh" in output
    assert output.count("python launch/agent.py --nnodes 2") == 2
    assert re.search(r"^0: \[default0\]:ar +step +10/3000 ", output, re.M), (
        "the first rank's lines are also in the job's own output"
    )
    saved = int(newest_checkpoint(directory).name.removeprefix("step_"))
    assert saved >= 5

    # The next start goes on from the checkpoint; a signal to the script puts the job back into the queue.
    second = start(1, *settings)
    wait_for_step(directory, saved + 8, second)
    second.process.send_signal(signal.SIGUSR1)
    status, output, _ = second.wait(START_SECONDS)
    assert status == 0, output
    assert requeued.read_text() == "4711\n"
    assert f"from {directory}/checkpoints/step_{saved:08d}" in output
    assert "back into the queue" in output
    steps = [record["step"] for record in records_of(directory)]
    assert steps == list(range(1, len(steps) + 1))
    assert newest_checkpoint(directory).name == f"step_{len(steps):08d}", "it saved the step it was at"

    # And so on, to the end.
    third = start(2, *settings, f"run.max_steps={len(steps) + 2}")
    status, output, _ = third.wait(START_SECONDS)
    assert status == 0, output
    assert "finished, or stopped at run.max_steps" in output
    assert requeued.read_text() == "4711\n"
    assert [record["step"] for record in records_of(directory)] == list(range(1, len(steps) + 3))
    logs = sorted(path.relative_to(tmp_path / "logs") for path in (tmp_path / "logs").rglob("stderr.log"))
    assert {path.parts[:3] for path in logs} == {
        ("4711", f"start-{n}", f"node-{m}") for n in range(3) for m in range(2)
    }


@pytest.mark.long
def test_a_mistake_is_not_requeued(start: Start, tmp_path: Path) -> None:
    job = start(0, "batch.global_sise=8")
    status, output, _ = job.wait(START_SECONDS)
    assert status not in (0, 75), output
    assert "batch.global_sise: unknown key" in output
    assert not (tmp_path / "requeued").exists()


def test_only_the_repository_can_be_submitted_from(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "launch/slurm.sbatch")],
        env={**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr == f"error: {tmp_path}: is not the root of nld-train (no launch/torchrun.sh); submit from there\n"
    )


def _chain(tmp_path: Path, *words: str) -> tuple[int, str, list[str]]:
    submitted = tmp_path / "submitted"
    done = subprocess.run(
        [str(ROOT / "launch/chain.sh"), *words],
        env={**os.environ, "PATH": f"{STUBS}{os.pathsep}{os.environ['PATH']}", "SUBMITTED": str(submitted)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr, submitted.read_text().splitlines() if submitted.exists() else []


def test_a_chain_submits_each_part_after_the_one_before(tmp_path: Path) -> None:
    parts = ["--nodes", "32", "--", "experiment=paper_8b", "--", "run.stages=[ar]", "--", "batch.micro_size=1", "--"]
    status, _, submitted = _chain(tmp_path, *parts)
    assert status == 0
    assert submitted == [
        "--parsable --nodes 32 launch/slurm.sbatch experiment=paper_8b run.stages=[ar]",
        "--parsable --nodes 32 --dependency=afterok:101 --kill-on-invalid-dep=yes launch/slurm.sbatch "
        "experiment=paper_8b batch.micro_size=1",
        "--parsable --nodes 32 --dependency=afterok:102 --kill-on-invalid-dep=yes launch/slurm.sbatch "
        "experiment=paper_8b",
    ]


def test_a_chain_without_parts_is_refused(tmp_path: Path) -> None:
    status, error, submitted = _chain(tmp_path, "--nodes", "32", "experiment=paper_8b")
    assert (status, submitted) == (2, [])
    assert error.startswith("error: two -- are needed")
    assert error.count("\n") == 1
