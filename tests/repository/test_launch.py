"""The Makefile, the launch scripts and the check of a change."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documented_commands import ROOT

SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)


def _make(*words: str) -> str:
    # The environment counts as made, whether there is one or not.
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def test_help_lists_the_targets() -> None:
    listed = re.findall(r"^([a-z-]+) +\S", _make(), re.MULTILINE)
    assert {"environment", "quickstart", "check", "test", "test-all", "clean"} <= set(listed)


def test_targets_do_what_they_say() -> None:
    assert 'pytest -m "not long"' in _make("-n", "test")
    assert "-m" not in _make("-n", "test-all").partition("pytest")[2]
    check = _make("-n", "check")
    for tool in ("ruff format --check", "ruff check", "mypy"):
        assert tool in check
    assert "launch/quickstart.sh run.seed=1" in _make("-n", "quickstart", "OVERRIDES=run.seed=1")


def test_ci_checks_and_then_tests() -> None:
    targets = re.findall(r"^make --no-print-directory (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert targets == ["check", "test-all"]


@pytest.mark.long
def test_torchrun_script_starts_one_node() -> None:
    environment = {
        **os.environ,
        "PROCESSES": "4",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["launch/torchrun.sh", "experiment=paper_8b", "run.dry=true"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 = tensor 4 x pipeline 1 x data 1") == 1
