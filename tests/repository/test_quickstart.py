"""The quickstart and its drafter as a user runs them, with nothing shortened: what they promise of their weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from documented_commands import copy_checkout

Records = list[dict[str, Any]]

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]


def run(folder: Path, *words: str) -> str:
    """Runs a command in a checkout, with the commands of this environment first; returns what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment = {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}
    with (folder / "errors.txt").open("w+") as errors:
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=1500,
            check=False,
        )
        errors.seek(0)
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{errors.read()[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after `make quickstart` and `make drafter`, and 20 held-out prompts in it."""
    folder = copy_checkout(tmp_path_factory.mktemp("quickstart"))
    run(folder, "launch/quickstart.sh")
    run(folder, "launch/drafter.sh")
    sizes = ("--count", "20", "--tokens", "128")
    run(folder, "nld-data", "prompts", "data/stdlib/stdlib-validation", "--out", "held-out.jsonl", *sizes)
    return folder


def decoded(folder: Path, directory: str, mode: str, extra: Sequence[str] = ()) -> Records:
    """An object per held-out prompt."""
    words = ["nld-decode", directory, "--mode", mode, "--prompts", "held-out.jsonl", "--json"]
    lines = run(folder, *words, "--block-length", "16", "--max-new-tokens", "64", *extra).splitlines()
    assert len(lines) == 20
    return [json.loads(line) for line in lines]


def tokens_per_forward(records: Records) -> float:
    """Of all prompts together."""
    return sum(record["new_tokens"] for record in records) / sum(record["forwards"] for record in records)


def test_self_speculation_reaches_its_tokens_per_forward(trained: Path) -> None:
    ar, linear = decoded(trained, "runs/quickstart", "ar"), decoded(trained, "runs/quickstart", "linear")
    assert [record["token_ids"] for record in linear] == [record["token_ids"] for record in ar]
    assert tokens_per_forward(linear) >= 1.3


def test_the_drafter_raises_them(trained: Path) -> None:
    plain, adapted = (decoded(trained, "runs/drafter", "linear", extra) for extra in ([], ["--adapter"]))
    assert [record["token_ids"] for record in adapted] == [record["token_ids"] for record in plain]
    assert tokens_per_forward(adapted) > tokens_per_forward(plain)


def test_both_losses_fell(trained: Path) -> None:
    """By far more than noise: each stage from its first ten steps to its last ten."""
    stages = json.loads((trained / "runs/quickstart/summary.json").read_text())["stages"]
    for stage, loss, share in (("ar", "ar_loss", 0.5), ("joint", "ar_loss", 0.9), ("joint", "diffusion_loss", 0.8)):
        assert stages[stage][f"last_{loss}"] < share * stages[stage][f"first_{loss}"], (stage, loss)
