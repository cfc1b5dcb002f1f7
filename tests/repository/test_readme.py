"""Every command of the README and the docs runs in a shell, shortened as `documented_commands` says.

The shell is a real one; our commands in it are forked from a process that has imported everything (`forked_command`).

`make quickstart` runs in `test_quickstart.py`, with nothing shortened.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from documented_commands import Block, blocks, copy_checkout, shorten
from forked_command import make_commands
from shared import shared_folder

BLOCKS = list(blocks())
UNSHORTENED = [block for block in BLOCKS if block.commands == ("make quickstart",)]
RESUMED = [block for block in BLOCKS if any("run.max_steps" in command for command in block.commands)]
OTHERS = [block for block in BLOCKS if block not in UNSHORTENED + RESUMED]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The user's, without a trace of the test; forked stand-ins for our commands come first, then this Python's."""
    commands = make_commands(tmp_path_factory.mktemp("commands") / "bin")
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "VIRTUAL_ENV")}
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), kept["PATH"]])
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path}


def _run(command: str, folder: Path, environment: Mapping[str, str], timeout: int) -> str:
    """Runs a line as a shell would; returns what it printed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]) -> Path:
    """A clone with the quickstart's corpus, and a corpus and conversations of a user's own; one for each worker."""

    def make(folder: Path) -> None:
        copy_checkout(folder)
        texts = [f"{n} times seven is {7 * n}, and that is all there is to it.\n" * 20 for n in range(200)]
        (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        rows = [{"prompt": f"What is {n} times seven?", "completion": f"{7 * n}"} for n in range(2000)]
        (folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        _run("nld-data prepare stdlib --out data/stdlib", folder, environment, 300)

    made = shared_folder(tmp_path_factory, "clone-with-corpus", make)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("clone") / "clone"))


def test_there_are_commands() -> None:
    pages = [block.page for block in BLOCKS]
    assert pages.count("README.md") >= 7
    assert len(UNSHORTENED) == 1
    assert RESUMED


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=[pytest.mark.long] if block.trains else [], id=block.name) for block in OTHERS],
)
def test_block_runs(checkout: Path, environment: Mapping[str, str], block: Block) -> None:
    # One shell for a block, so that what it exports counts for the lines after it.
    lines = "\n".join(shorten(command) for command in block.commands)
    _run(lines, checkout, environment, 600)


@pytest.mark.long
@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in RESUMED])
def test_interrupted_run_goes_on(checkout: Path, environment: Mapping[str, str], block: Block) -> None:
    steps = []
    for command in block.commands:
        _run(shorten(command), checkout, environment, 300)
        lines = (checkout / "runs/interrupted/metrics.jsonl").read_text().splitlines()
        steps.append([json.loads(line)["step"] for line in lines])
    assert steps == [[1, 2, 3], [1, 2, 3, 4]]
