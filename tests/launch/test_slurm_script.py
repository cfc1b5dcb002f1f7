"""What the Slurm script makes of the settings and of how a run ends; the run itself is a stub."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

STUBS = Path(__file__).parent
ROOT = STUBS.parents[1]
# Stands for srun and all that it starts: writes its arguments, one per line, and ends with a given status; the check of
# the nodes ends with one of its own.
SRUN = """#!/usr/bin/env bash
if [[ ${*: -1} == launch/check_node.sh ]]; then
    printf "%s\\n" "$@" >"$WORDS.check"
    exit "${CHECK_STATUS:-0}"
fi
printf "%s\\n" "$@" >"$WORDS"
exit "$STATUS"
"""
SAVED, FAILED = 75, 3


@dataclass
class Script:
    """The batch script of one job, with a folder for what it writes."""

    folder: Path

    def start(self, number: int, run_ends_with: int, *words: str, **variables: str) -> tuple[int, str]:
        """One start of the job; returns its status and all that it printed."""
        done = subprocess.run(
            ["bash", str(ROOT / "launch/slurm.sbatch"), *words],
            env={**self._environment(), "SLURM_RESTART_COUNT": str(number), "STATUS": str(run_ends_with), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        return done.returncode, done.stdout

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("RETRIES", "CONTAINER")}
        return kept | {
            "PATH": os.pathsep.join([str(self.folder / "bin"), str(STUBS), os.environ["PATH"]]),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_CPUS_ON_NODE": "96",
            "LOG_ROOT": str(self.folder / "logs"),
            "REQUEUED": str(self.folder / "requeued"),
            "WORDS": str(self.folder / "words"),
        }

    @property
    def requeues(self) -> int:
        """How often the job was put back into the queue."""
        noted = self.folder / "requeued"
        return noted.read_text().count("4711\n") if noted.exists() else 0


@pytest.fixture
def script(tmp_path: Path) -> Script:
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "srun"
    stub.write_text(SRUN)
    stub.chmod(0o755)
    return Script(tmp_path)


def test_failures_are_counted_and_planned_starts_are_not(script: Script) -> None:
    """Saved at each time limit for weeks, the job may still fail twice."""
    for number in range(4):
        assert script.start(number, SAVED, RETRIES="2")[0] == 0
    for number, failure in ((4, 1), (6, 2)):
        status, output = script.start(number, FAILED, RETRIES="2")
        assert status == 0, output
        assert f"failure {failure}, RETRIES=2: back into the queue" in output
        assert script.start(number + 1, SAVED, RETRIES="2")[0] == 0
    assert script.requeues == 8
    status, output = script.start(8, FAILED, RETRIES="2")
    assert (status, script.requeues) == (FAILED, 8)
    assert "failed with exit code 3" in output
    assert (script.folder / "logs/4711/failures").read_text() == "3\n"


def test_without_retries_the_first_failure_is_the_last(script: Script) -> None:
    assert script.start(0, FAILED)[0] == FAILED
    assert script.requeues == 0


@pytest.mark.parametrize("mounts", ["", "/corpus:/corpus,/shared:/shared"])
def test_a_container_sees_repository_logs_and_the_given_mounts(script: Script, mounts: str) -> None:
    variables = {"CONTAINER": "/shared/nld-train.sqsh", "CONTAINER_MOUNTS": mounts}
    status, output = script.start(0, 0, "experiment=paper_8b", "run.name=two words", **variables)
    assert status == 0, output
    logs = script.folder / "logs/4711/start-0"
    options = [
        "--ntasks-per-node=1",
        "--cpus-per-task=96",
        "--cpu-bind=none",
        "--label",
        "--kill-on-bad-exit=1",
        "--container-image=/shared/nld-train.sqsh",
        f"--container-workdir={ROOT}",
        f"--container-mounts={ROOT}:{ROOT},{logs}:{logs}" + (f",{mounts}" if mounts else ""),
    ]
    words = (script.folder / "words").read_text().splitlines()
    assert words[: len(options) + 2] == [*options, "bash", "-c"]
    assert words[-4:] == ["nld-train", str(logs), "experiment=paper_8b", "run.name=two words"]
    (line,) = [line for line in output.splitlines() if line.startswith("+ srun ")]
    # The printed line is the command: a shell that reads it finds the same words.
    read = subprocess.run(
        ["bash", "-c", f'printf "%s\\n" {line.removeprefix("+ srun ")}'], capture_output=True, text=True
    )
    assert read.stdout.splitlines() == words


def test_without_a_container_there_is_none(script: Script) -> None:
    script.start(0, 0)
    assert "--container" not in (script.folder / "words").read_text()


def test_a_run_has_all_cpus_of_its_nodes_and_the_interface_that_was_named(script: Script) -> None:
    stub = script.folder / "bin" / "srun"
    stub.write_text(SRUN.replace('exit "$STATUS"', 'echo "$NCCL_SOCKET_IFNAME $GLOO_SOCKET_IFNAME"; exit "$STATUS"'))
    status, output = script.start(0, 0, NETWORK_INTERFACE="bond0")
    assert status == 0, output
    assert "bond0 bond0\n" in output
    words = (script.folder / "words").read_text().splitlines()
    checked = (script.folder / "words.check").read_text().splitlines()
    assert words[:4] == checked[:4] == ["--ntasks-per-node=1", "--cpus-per-task=96", "--cpu-bind=none", "--label"]


def test_nothing_starts_on_a_node_that_is_not_fit(script: Script) -> None:
    status, output = script.start(0, 0, CHECK_STATUS="1", RETRIES="3")
    assert status == 1
    assert "error: job 4711: not started; leave out the nodes named above" in output
    assert not (script.folder / "words").exists()
    assert script.requeues == 0
    checked = (script.folder / "words.check").read_text()
    assert "--kill-on-bad-exit" not in checked, "every node that is not fit says so"
    assert script.start(0, 0, CHECK_STATUS="1", CHECK_NODES="0")[0] == 0


def _check_node(tmp_path: Path, listed: str, **variables: str) -> tuple[int, str]:
    """The check of this machine, whose GPUs `nvidia-smi` lists as given."""
    (tmp_path / "listed").write_text(listed)
    programs = {"nvidia-smi": f"cat {tmp_path / 'listed'}", "python": f'exec {sys.executable} "$@"'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "launch/check_node.sh")],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_node_names_all_its_faults(tmp_path: Path) -> None:
    four = "".join(f"{gpu}, {4 if gpu else 40960}\n" for gpu in range(4))
    variables = {"MASTER_ADDRESS": "no-such-host.invalid", "NETWORK_INTERFACE": "ib7", "SLURM_GPUS_ON_NODE": "8"}
    status, output = _check_node(tmp_path, four, **variables)
    assert status == 1
    lines = [line.partition(f"error: {os.uname().nodename}: ")[2] for line in output.splitlines()]
    assert lines[0] == "does not know the first node's name, no-such-host.invalid"
    assert lines[1].startswith("NETWORK_INTERFACE=ib7: not one of ")
    assert lines[2:] == ["4 of 8 GPUs answer", "GPU 0: 40960 MiB are in use already"]


def test_a_node_without_faults_is_fit(tmp_path: Path) -> None:
    eight = "".join(f"{gpu}, 4\n" for gpu in range(8))
    status, output = _check_node(tmp_path, eight, MASTER_ADDRESS="localhost", SLURM_GPUS_ON_NODE="8")
    assert status == 0, output
    assert output.endswith("CPUs, 8 GPUs\n")
