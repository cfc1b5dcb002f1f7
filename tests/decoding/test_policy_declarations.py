"""Declarations of commit policies: what help, docs and settings say follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nld_train.commands.arguments import add_policy
from nld_train.commands.decode import main
from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration
from nld_train.decoding.policies.registry import DEFAULT, POLICIES, PolicySettings, policy_arguments
from nld_train.evaluation.harness.settings import EvaluationSettings

DOCS = Path(__file__).parents[2] / "docs" / "decoding.md"


def table_row(declaration: PolicyDeclaration) -> str:
    """A policy's row of the table in docs/decoding.md."""
    arguments = ", ".join(f"`{argument.option}`" for argument in declaration.arguments)
    return f"| `{declaration.name}` | {arguments} | {declaration.summary} |"


@pytest.mark.parametrize("name", list(POLICIES))
def test_the_docs_list_every_policy(name: str) -> None:
    assert table_row(POLICIES[name]) in DOCS.read_text(encoding="utf-8").splitlines()


def test_help_lists_every_policy_and_argument(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for declaration in POLICIES.values():
        assert f"{declaration.name}: {declaration.summary}" in shown
    for argument in policy_arguments().values():
        assert f"{argument.option} {argument.metavar}" in shown
        assert argument.help in shown


def test_defaults_are_in_range_and_settings_are_complete() -> None:
    settings = PolicySettings()
    assert settings.name == DEFAULT
    assert settings.arguments == {argument.name: argument.default for argument in settings.declaration.arguments}
    assert PolicySettings.of(settings.record()) == settings
    for argument in policy_arguments().values():
        argument.check(argument.default)


def test_settings_of_the_harness_are_keywords() -> None:
    settings = EvaluationSettings.of(mode="diffusion", policy="entropy", entropy=0.5, samples=7)
    assert settings.policy == PolicySettings("entropy", {"entropy": 0.5})
    assert settings.record()["entropy"] == 0.5
    assert EvaluationSettings.of(**settings.record()) == settings
    with pytest.raises(ValueError, match="policy: 'hope' is not one of threshold, number"):
        EvaluationSettings.of(policy="hope")
    with pytest.raises(TypeError, match="hope"):
        EvaluationSettings.of(hope=1)


def test_an_argument_is_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two policies may share an argument, but not its name alone."""
    other = Argument("steps", int, 3, help="others", metavar="N", lowest=1)
    declaration = PolicyDeclaration("other", "nothing", (other,), POLICIES["steps"].build)
    monkeypatch.setitem(POLICIES, "other", declaration)
    with pytest.raises(AssertionError, match="steps is declared twice"):
        policy_arguments()


def test_add_policy_needs_nothing_but_declarations() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_policy(parser)
    parsed = parser.parse_args(["--policy", "steps", "--steps", "4"])
    assert PolicySettings.of(vars(parsed)) == PolicySettings("steps", {"steps": 4})
