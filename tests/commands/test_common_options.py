"""Options that mean the same in every command: --version, --json and --output."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from without_torch import COMMANDS

from nld_train.commands.command import Command
from nld_train.results import give_result

WITH_RESULT = {
    "nld-acceptance",
    "nld-bound",
    "nld-curve",
    "nld-decode",
    "nld-eval",
    "nld-exact",
    "nld-plan",
    "nld-sampler",
}


def commands() -> Iterator[tuple[str, Command]]:
    """All but nld-train, whose parser is Hydra's."""
    for name, module in COMMANDS.items():
        if name != "nld-train":
            yield name, import_module(module).main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_the_version_of_this_project(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from nld_train.revision import package_version

    try:
        status = import_module(COMMANDS[name]).main(["--version"])
    except SystemExit as stop:
        status = stop.code
    assert status in (0, None)
    printed = capsys.readouterr().out
    assert printed.startswith(f"nld-train {package_version()} (commit ")
    assert printed.count("\n") == 1


def test_json_is_a_switch_and_output_a_file_in_every_command() -> None:
    found = set()
    for name, command in commands():
        options = {option: action for action in command.parser()._actions for option in action.option_strings}
        if "--json" in options or "--output" in options:
            assert options["--json"].nargs == 0, name
            assert options["--output"].metavar == "FILE", name
            assert options["--output"].nargs is None, name
            found.add(name)
    assert found == WITH_RESULT | {"nld-status"}


@pytest.mark.parametrize("words", [["--json", "out.json"], ["--json=out.json"]])
@pytest.mark.parametrize("name", sorted(WITH_RESULT - {"nld-plan"}))
def test_a_file_after_json_is_told_the_new_option(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    required = {
        "nld-acceptance": ["--prompts", "a"],
        "nld-exact": ["--prompts", "a"],
        "nld-decode": ["--prompt", "a", "--mode", "ar"],
        "nld-eval": ["--mode", "ar", "--tasks", "a"],
    }
    given = ["checkpoint", *required.get(name, ["--prompt", "a"]), *words]
    assert import_module(COMMANDS[name]).main(given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--json takes no file" in error
    assert "--output out.json" in error


def test_a_file_after_json_before_the_other_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line of earlier versions in another order."""
    assert import_module(COMMANDS["nld-curve"]).main(["--json", "out.json", "checkpoint", "--prompt", "a"]) == 2
    assert "--output out.json" in capsys.readouterr().err


def test_other_errors_of_a_command_line_with_json_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module(COMMANDS["nld-curve"]).main(["a", "--json", "--prompt", "a", "--promt", "b"]) == 2
    assert "--promt" in capsys.readouterr().err


def test_a_result_is_printed_or_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, output = {"speed": 2.5}, tmp_path / "result.json"
    for as_json in (True, False):
        give_result(Namespace(json=as_json, output=str(output)), result, lambda: print("a table"))
        printed = capsys.readouterr().out
        assert (json.loads(printed) == result) if as_json else (printed == "a table\n")
        assert json.loads(output.read_text()) == result
        output.unlink()


def test_a_result_is_in_its_file_when_standard_output_is_closed(tmp_path: Path) -> None:
    def closed() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        give_result(Namespace(json=False, output=str(tmp_path / "a.json")), {}, closed)
    assert (tmp_path / "a.json").read_text() == "{}\n"
