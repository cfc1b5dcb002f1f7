"""Runs that were killed without warning, at any moment, continue as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from children import Child
from run_equality import assert_same_run
from tiny_runs import SHORT, records_of, short_stages

from nld_train.training.checkpoint.paths import UNFINISHED

SEED = 20260726
STEPS = 24
SETTINGS = (*SHORT, *short_stages(12, 12), "checkpoint.every=3", "checkpoint.keep_last=2")
# File operations, as `children.Child` names them; two kills of each kind, before one drawn at random.
OPERATIONS = {
    "a weight file": r"open .*\.distcp",
    "a small file": r"open .*\.(tmp/[a-z]+\.(json|yaml)|manifest\.json\.tmp)",
    "the renaming of the whole": r"os\.rename .*\d\.tmp$",
    "latest": r".*/\.latest\.tmp",
    "the deletion of an old one": r"os\.(remove|rename .*/step_\d+$|rmdir)",
}
AT_RANDOM_TIMES = 10

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Moment:
    """When a run is killed: before a file operation, or some time after a step.

    Attributes:
        operation: number of the file operation, from 1; 0: none.
        step: so many steps have been made; 0: from the start of training on.
        delay: seconds after that.
        meaning: for messages.
    """

    operation: int
    step: int
    delay: float
    meaning: str


@pytest.fixture(scope="module")
def never_stopped(data: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Child:
    child = Child(tmp_path_factory.mktemp("whole") / "run", (*data, *SETTINGS))
    assert child.wait() == 0, child.output()
    return child


def draw_moments(operations: list[str], seconds_per_step: float) -> list[Moment]:
    generator = random.Random(SEED)
    moments = []
    for kind, pattern in OPERATIONS.items():
        numbers = [number for number, operation in enumerate(operations, start=1) if re.match(pattern, operation)]
        for number in generator.sample(numbers, 2):
            moments.append(Moment(number, 0, 0.0, f"before {kind}: {operations[number - 1]}"))
    for step in (0, *generator.sample(range(1, STEPS), AT_RANDOM_TIMES - 1)):
        delay = generator.uniform(0.0, 2 * seconds_per_step)
        moments.append(Moment(0, step, delay, f"{delay:.3f} s after step {step}"))
    return moments


def test_twenty_killed_runs_go_on(never_stopped: Child, data: tuple[str, ...], tmp_path: Path) -> None:
    """To the same weights, optimizer state and losses, with nothing half-written left."""
    records = records_of(never_stopped.directory)
    seconds = sum(record["seconds"] for record in records) / STEPS
    moments = draw_moments(json.loads(never_stopped.operations.read_text()), seconds)
    assert len(moments) == 20

    def kill(number: int) -> Path:
        directory = tmp_path / f"run{number}"
        kill_run(Child(directory, (*data, *SETTINGS), moments[number].operation), moments[number])
        return directory

    with ThreadPoolExecutor(2) as pairs:
        directories = list(pairs.map(kill, range(20)))
        left = [remains(directory) for directory in directories]
        list(pairs.map(lambda directory: go_on(directory, (*data, *SETTINGS)), directories))
    for moment, directory in zip(moments, directories, strict=True):
        message = f"seed {SEED}, {directory.name}, killed {moment.meaning}"
        assert_same_run(directory, never_stopped.directory, message)
        assert list((directory / "checkpoints").glob(f"*{UNFINISHED}")) == [], message
    assert_moments_of_all_kinds(left)


def kill_run(child: Child, moment: Moment) -> None:
    if not moment.operation:
        child.wait_for_step(moment.step)
        child.process.poll(moment.delay)
        child.process.kill()
    assert child.wait() == -signal.SIGKILL, f"{moment.meaning}\n{child.output()}"


def remains(directory: Path) -> tuple[int, list[str]]:
    """Number of complete lines of metrics, and the names under `checkpoints`."""
    metrics = directory / "metrics.jsonl"
    names = sorted(path.name for path in (directory / "checkpoints").glob("*"))
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0, names


def go_on(directory: Path, overrides: tuple[str, ...]) -> None:
    child = Child(directory, overrides)
    assert child.wait() == 0, child.output()


def assert_moments_of_all_kinds(left: list[tuple[int, list[str]]]) -> None:
    """Killed before the first checkpoint, in both stages, and while one was written, renamed or deleted."""
    newest = [max((name for name in names if re.fullmatch(r"step_\d+", name)), default=None) for _, names in left]
    assert sum(any(name.endswith(UNFINISHED) for name in names) for _, names in left) >= 5
    assert sum(".latest.tmp" in names for _, names in left) >= 1
    assert None in newest
    assert any(0 < steps < 12 for steps, _ in left)
    assert any(12 < steps < 24 for steps, _ in left)


def test_the_command_itself(never_stopped: Child, data: tuple[str, ...], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "nld_train.train", *data, *SETTINGS, f"run.dir={directory}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (directory / "checkpoints" / "step_00000003").exists():
            assert process.poll() is None, "the run ended by itself"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert remains(directory)[0] < STEPS
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert_same_run(directory, never_stopped.directory)
