"""What `nld-decode` prints: texts that grow, figures, tables, progress."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from command_helpers import MODES, SHORT, THREE, short
from rich.console import Console
from tiny_runs import run_python

from nld_train.commands.decode import main


def test_a_comparison_shows_its_progress_on_standard_error(
    trained: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar of new tokens for each mode, on a console that acts as a terminal; each ends full."""
    shown = io.StringIO()
    streams: list[dict[str, Any]] = []

    def console(**settings: Any) -> Console:
        streams.append(settings)
        return Console(file=shown, force_terminal=True, width=100)

    # Imported first: a module imported meanwhile would keep the replacement for good.
    from nld_train.decoding.command_line import chat, command  # noqa: F401

    monkeypatch.setattr("nld_train.console.plain_console", console)
    assert main(short(trained, "--prompts", prompts_file, "--compare", *SHORT, "--json")) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(MODES) * len(THREE)
    assert streams[-len(MODES) :] == [{"stderr": True}] * len(MODES)
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown.getvalue()).splitlines()
    for number, mode in enumerate(MODES, start=1):
        bars = [line for line in lines if f"{mode} ({number} of 4)" in line]
        assert "60/60" in bars[-1]


def test_sampled_texts_are_not_compared_with_ar(
    records: Any, trained_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--prompt", "seven", "--compare", "--temperature", 1)
    assert {record["agreement"] for record in records(trained_export, *words)} == {None}
    assert main(short(trained_export, *SHORT, *words)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.rstrip(" \u2502").endswith(" -") for line in lines) == len(MODES)


def test_what_is_shown_and_what_warms_up_is_not_timed(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mode of a comparison first decodes a few tokens that are not reported."""
    from nld_train.decoding.command_line import command

    calls: list[tuple[str, int]] = []

    def decode(engine: Any, prompts: Any, mode: Any, options: Any, *more: Any) -> Any:
        calls.append((mode, options.max_new_tokens))
        return real(engine, prompts, mode, options, *more)

    real = command.decode
    monkeypatch.setattr(command, "decode", decode)
    assert main(short(trained, *SHORT, "--prompt", "seven", "--compare", "--json")) == 0
    assert calls == [(mode, length) for mode in MODES for length in (8, 20)]
    assert len(capsys.readouterr().out.splitlines()) == len(MODES)


def test_the_table_shows_the_modes_side_by_side(
    trained: Path, prompts_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(short(trained, "--prompts", prompts_file, "--compare", *SHORT)) == 0
    printed = capsys.readouterr().out
    assert all(f" {mode} " in printed for mode in MODES)
    assert printed.count("100.0%") >= 3


LONGER = ("--prompt", "seven times", "--max-new-tokens", "80", "--compare")


@pytest.fixture(scope="module")
def longer_texts(trained: Path) -> list[str]:
    """Of each mode, longer than a line of the table."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(short(trained, *SHORT, *LONGER, "--json")) == 0
    return [json.loads(line)["text"] for line in printed.getvalue().splitlines()]


@pytest.mark.parametrize(("columns", "width"), [(None, 120), ("80", 80)])
def test_the_table_has_one_line_per_mode(
    longer_texts: list[str],
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str | None,
    width: int,
) -> None:
    """Of a text that is longer than there is room: 120 columns into a pipe, as many as there are on a terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    capsys.readouterr()
    assert main(short(trained, *SHORT, *LONGER)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == width
    assert len(lines) == len(MODES) + 4
    for mode, line, text in zip(MODES, lines[3:], longer_texts, strict=False):
        assert line.startswith(f"\u2502 {mode} ")
        assert ("\u2026 " in line) == (len(text) > 70)


def test_decoding_an_export_prints_nothing_else(trained_export: Path) -> None:
    """Nor does a library beneath: in a process of its own, since libraries say some things once."""
    words = ["-m", "nld_train.commands.decode", str(trained_export), "--prompt", "seven times", "--mode", "ar", *SHORT]
    done = run_python(words, timeout=120)
    assert done.status == 0
    assert done.output.startswith("seven times")
    assert done.output.splitlines()[-1].startswith("ar: ")
    assert "transformers" not in done.output
    assert "Loading" not in done.output


def test_plain_output_is_prompt_text_and_figures(
    records: Any, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = records(trained, "--prompt", "seven times", "--mode", "ar")
    assert main([str(trained), "--prompt", "seven times", "--mode", "ar", *SHORT]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("seven times")
    assert f"ar: {record['new_tokens']} tokens in " in printed
    assert "\x1b" not in printed


def test_a_terminal_sees_colours_and_growth(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every refresh, on a console that takes itself for a terminal."""
    from nld_train.decoding.command_line import command, terminal

    terminal_text = io.StringIO()
    console = Console(file=terminal_text, force_terminal=True, color_system="standard", width=80)
    monkeypatch.setattr(command, "plain_console", lambda **_: console)
    monkeypatch.setattr(terminal, "_REFRESH_SECONDS", 0.0)
    for mode in MODES:
        assert main(short(trained, "--prompt", "seven times", "--mode", mode, *SHORT)) == 0
        shown = terminal_text.getvalue()
        terminal_text.seek(0)
        terminal_text.truncate()
        assert "seven times" in shown
        assert "\x1b[2mseven times" in shown
        assert ("\u2591" in shown) == (mode == "diffusion")
        assert ("\x1b[9;31m" in shown) == (mode in ("linear", "quadratic"))
