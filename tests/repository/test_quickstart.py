"""The quickstart and its drafter from a fresh clone, with nothing shortened: that they run, and what they promise."""

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

from nld_train.data.tasks.registry import KINDS

Records = list[dict[str, Any]]

pytestmark = [pytest.mark.long, pytest.mark.timeout(4200)]


def run(folder: Path, command: str) -> str:
    """Runs a line as a user in a clone would, the clone's own commands first; returns its standard output."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "VIRTUAL_ENV")}
    environment = {**kept, "PATH": f"{folder / '.venv/bin'}{os.pathsep}{kept['PATH']}", "PYTHON": sys.executable}
    with (folder / "errors.txt").open("w+") as errors:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=3600,
            check=False,
        )
        errors.seek(0)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{errors.read()[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which a user has said `make quickstart`: it makes an environment of its own."""
    folder = copy_checkout(tmp_path_factory.mktemp("quickstart"))
    printed = run(folder, "make quickstart")
    (folder / "printed.txt").write_text(printed + (folder / "errors.txt").read_text())
    sizes = "--count 20 --tokens 128"
    run(folder, f"nld-data prompts data/stdlib/stdlib-validation --out held-out.jsonl {sizes}")
    return folder


def decoded(folder: Path, command: str) -> Records:
    """An object per held-out prompt; in blocks as the checkpoint was trained on."""
    words = "--prompts held-out.jsonl --json --max-new-tokens 64"
    lines = run(folder, f"nld-decode {command} {words}").splitlines()
    assert len(lines) == 20
    return [json.loads(line) for line in lines]


def tokens_per_forward(records: Records) -> float:
    """Of all prompts together."""
    return sum(record["new_tokens"] for record in records) / sum(record["forwards"] for record in records)


def texts(records: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [record["token_ids"] for record in records]


def test_it_says_what_it_made(clone: Path) -> None:
    printed = (clone / "printed.txt").read_text()
    steps = sum(stage["steps"] for stage in stages(clone).values())
    assert f"{'joint':<6} step {steps}/{steps}" in printed
    assert "Warning" not in printed
    for name in ("summary.json", "report.png", "metrics.jsonl"):
        assert (clone / "runs/quickstart" / name).is_file()
        assert f"runs/quickstart/{name}" in printed
    assert (clone / "runs/quickstart/checkpoints/latest").is_file()


def stages(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs/quickstart/summary.json").read_text())["stages"]
    return found


def test_both_losses_fell(clone: Path) -> None:
    """By far more than noise: each stage from its first ten steps to its last ten."""
    found = stages(clone)
    for stage, loss, share in (("ar", "ar_loss", 0.5), ("joint", "ar_loss", 0.9), ("joint", "diffusion_loss", 0.8)):
        assert found[stage][f"last_{loss}"] < share * found[stage][f"first_{loss}"], (stage, loss)


def test_self_speculation_reaches_its_tokens_per_forward(clone: Path) -> None:
    ar, linear = (decoded(clone, f"runs/quickstart --mode {mode}") for mode in ("ar", "linear"))
    assert texts(linear) == texts(ar)
    assert tokens_per_forward(linear) >= 1.2


def test_it_answers_questions_in_every_mode(clone: Path) -> None:
    """The last table; linear and quadratic self-speculation answer what AR answers, in fewer forwards."""
    scores = json.loads((clone / "runs/instruct/scores.json").read_text())
    overall = {mode: by_kind["all"] for mode, by_kind in scores.items()}
    assert list(overall) == ["ar", "diffusion", "linear", "quadratic"]
    assert set(scores["ar"]) == {"all", *KINDS}
    assert overall["ar"]["exact"] >= 0.9
    assert overall["diffusion"]["exact"] >= 0.85
    assert overall["diffusion"]["tokens_per_forward"] >= 2.5
    for mode in ("linear", "quadratic"):
        assert {kind: figures["exact"] for kind, figures in scores[mode].items()} == {
            kind: figures["exact"] for kind, figures in scores["ar"].items()
        }
    assert overall["linear"]["tokens_per_forward"] >= 3
    assert overall["quadratic"]["tokens_per_forward"] >= 5
    printed = (clone / "printed.txt").read_text()
    assert all(kind in printed for kind in KINDS)


def test_the_drafter_raises_them(clone: Path) -> None:
    run(clone, "make drafter")
    plain, adapted = (decoded(clone, f"runs/drafter --mode linear {extra}") for extra in ("", "--adapter"))
    assert texts(adapted) == texts(plain)
    assert tokens_per_forward(adapted) > tokens_per_forward(plain)


def test_again_it_goes_on_where_it_stopped(clone: Path) -> None:
    files = [clone / f"runs/{name}/metrics.jsonl" for name in ("quickstart", "instruct")]
    before = [file.read_bytes() for file in files]
    again = run(clone, "make -q .venv/.installed && make quickstart")
    assert "already prepared" in again
    assert not [stage for stage in (*stages(clone), "text", "instruct") if f"{stage:<6} step" in again]
    assert [file.read_bytes() for file in files] == before
