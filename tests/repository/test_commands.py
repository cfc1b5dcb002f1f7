"""Every console script: what it imports for `--help`, and how it reports errors and interrupts."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import pytest
from documented_commands import ROOT

from nld_train.commands.command import Command
from nld_train.errors import UserError, exit_status

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = {"torch", "megatron", "transformers", "lm_eval", "numpy", "rich", "datasets", "matplotlib"}
# An argument of each that names a file or folder which is not there, and what its line must say.
MISSING = {
    "nld-train": (["--config-dir=missing"], "missing"),
    "nld-data": (["inspect", "missing"], "missing.bin does not exist"),
    "nld-convert": (["import", "missing", "out"], "missing"),
    "nld-decode": (["missing", "--mode", "ar", "--prompt", "x"], "missing"),
    "nld-plan": (["gpus=8", "experiment=missing"], "experiment=missing"),
    "nld-status": (["missing"], "missing"),
    "nld-curve": (["missing", "--prompts", "prompts.txt"], "--prompts prompts.txt"),
    "nld-bound": (["missing", "--prompt", "x"], "missing"),
    "nld-sampler": (["missing", "--prompt", "x", "--output", "no/where.json"], "--output no/where.json"),
    "nld-acceptance": (["missing", "--prompts", "questions.jsonl"], "--prompts questions.jsonl"),
    "nld-exact": (["missing", "--prompts", "questions.jsonl"], "--prompts questions.jsonl"),
    "nld-report": (["missing"], "missing: is no directory"),
    "nld-launch": (["missing"], "missing: is no directory"),
    "nld-eval": (["missing", "--mode", "ar", "--tasks", "t", "--output", "no/where.json"], "--output no/where.json"),
}
# A word that the help of each has.
HELP = {
    "nld-train": "experiment=quickstart",
    "nld-data": "prepare",
    "nld-convert": "verify",
    "nld-decode": "--block-length",
    "nld-plan": "gpus=256",
    "nld-status": "--checksums",
    "nld-curve": "--thresholds",
    "nld-bound": "--budget",
    "nld-sampler": "--components",
    "nld-acceptance": "--modes",
    "nld-eval": "--num-fewshot",
    "nld-exact": "--modes",
    "nld-report": "--no-decoding",
    "nld-launch": "slurm.sbatch",
}


def main_of(name: str) -> Callable[[Sequence[str]], int]:
    module, _, function = SCRIPTS[name].partition(":")
    main: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return main


def refusal(capfd: pytest.CaptureFixture[str], name: str, *words: str) -> str:
    """The one line of a command that fails with status 2."""
    capfd.readouterr()
    assert main_of(name)(words) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_option_is_one_line_and_status_2(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = [word for word in MISSING[name][0] if word != "--config-dir=missing"]
    said = refusal(capfd, name, *words, "--no-such-option")
    assert "--no-such-option" in said
    assert f"{name}" in said
    assert "--help" in said


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_missing_file_is_one_line_and_status_2(
    name: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    words, said = MISSING[name]
    assert said in refusal(capfd, name, *words)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_fast(name: str) -> None:
    """It imports nothing heavy."""
    module, _, function = SCRIPTS[name].partition(":")
    call = f"import sys, {module} as m\ntry: m.{function}(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=60, check=True)
    *printed, modules = done.stdout.splitlines()
    assert any(HELP[name] in line for line in printed)
    assert any(name in line for line in printed)
    assert all(find_spec(package) for package in HEAVY)
    # Hydra reads the configuration's files for the help of nld-train.
    heavy = HEAVY if name == "nld-train" else {*HEAVY, "yaml"}
    assert not heavy & set(modules.split())


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "nld-train"])
def test_what_a_script_runs_exists(name: str) -> None:
    """Functions that are named by a string, so that their modules are imported late."""
    command = main_of(name)
    assert isinstance(command, Command)
    assert command.name == name
    for chosen in command.subcommands or (command,):
        assert chosen.run is not None
        for named in (chosen.run, chosen.check):
            path = getattr(named, "path", None)
            if path is not None:
                module, _, function = path.partition(":")
                assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("key: is\nwrong"), 2, "error: key: is wrong\n"),
        (PermissionError(13, "Permission denied", "/file"), 2, "error: Permission denied: /file\n"),
        (OSError("no text"), 2, "error: no text\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_of_a_command(error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: argparse.Namespace) -> None:
        raise error

    assert Command("name", "what it does", run=run)([]) == status
    assert capsys.readouterr().err == said


def test_an_error_of_the_program_is_no_error_of_the_user() -> None:
    def run() -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        exit_status(run)


def test_the_status_of_a_command_is_its_own() -> None:
    assert [Command("name", "what it does", run=lambda _, status=status: status)([]) for status in (None, 0, 1)] == [
        0,
        0,
        1,
    ]
