"""The lines of a run: on a terminal, in a file or a pipe, and in `run.log`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nld_train.training.metrics.console import ConsoleLog, folded
from nld_train.training.metrics.registry import MetricTable
from nld_train.training.metrics.step_numbers import STEP_NUMBERS

TOTAL = 476838


def step_of(step: int, stage: str = "joint", **more: Any) -> dict[str, Any]:
    """A record of a large run, whose numbers take as many characters as they may."""
    figures = {"tokens": 1_250_000_000_000, "loss": 12.3456, "ar_loss": 11.2345, "diffusion_loss": 10.1234}
    speed = {"grad_norm": 123.456, "learning_rate": 3e-4, "tokens_per_second": 1_050_000.0, "mfu": 0.423}
    return {"stage": stage, "step": step, **figures, **speed, "seconds_left": 1_051_200.0, **more}


VALIDATION = {
    "ar_loss": 1.5,
    "diffusion_loss": {str(t): 2.0 for t in (0.1, 0.3, 0.5, 0.7)},
    "seconds": 1.2,
    "share": 0.05,
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")


def written(directory: Path, steps: int, every: int = 10) -> str:
    """What is in `run.log` after so many steps, with a validation after the third."""
    log = ConsoleLog(directory, TOTAL, every, MetricTable(), ("ar", "joint"))
    log.print("the first line")
    for step in range(1, steps + 1):
        more = {"validation": VALIDATION} if step == 3 else {}
        log.write(step_of(step, **more), list(more))
    log.close()
    return (directory / "run.log").read_text()


def test_a_pipe_gets_every_tenth_step_in_lines_of_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = written(tmp_path, 25)
    printed = capsys.readouterr().out
    assert re.findall(r"^joint  step +(\d+)/476838  ", printed, re.M) == ["10", "20"]
    assert "12d 04h left" in printed
    assert max(map(len, printed.splitlines())) <= 80
    # The log has the same lines after one that says when and where it was started.
    first, _, rest = log.partition("\n")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d process \d+ on ", first)
    assert rest == printed


def test_the_most_important_numbers_of_a_step_fit() -> None:
    table = MetricTable()
    parts = {metric.name for metric in STEP_NUMBERS if metric.importance >= table["diffusion_loss"].importance}
    assert parts == {"loss", "seconds_left", "ar_loss", "diffusion_loss"}


def test_a_log_is_continued(tmp_path: Path) -> None:
    once = written(tmp_path, 1)
    assert written(tmp_path, 1).startswith(once)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_one_live_line_with_bar_colour_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nld_train.training.metrics.console._REFRESH_SECONDS", 0.0)
    log = written(tmp_path, 25)
    shown = capsys.readouterr().out
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"^joint ━.* 25/476838  loss 12.3456  ar 11.2345  12d 04h left", plain, re.M)
    assert "\x1b[32mjoint" in shown, "the second stage is green"
    assert "step 10/" not in plain, "the live line takes the place of the others"
    assert "step     10/476838" in log
    assert "validation  ar 1.5000" in plain
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown, "the cursor is shown again"
    assert max(map(len, plain.replace("\r", "\n").splitlines())) <= 80


@pytest.mark.usefixtures("terminal")
def test_the_last_step_stays_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = ConsoleLog(tmp_path, 2, 10, MetricTable(), ("ar",))
    for step in (1, 2):
        log.write(step_of(step, "ar"))
    log.close()
    assert "step 2/2" in capsys.readouterr().out


def test_long_measurements_are_folded_between_words() -> None:
    line = "       validation  ar 1.2345  diffusion t=0.1 2.0000  t=0.3 2.0000  t=0.5 2.0000  t=0.7 2.0000"
    parts = folded(line)
    assert max(map(len, parts)) <= 80
    assert " ".join(" ".join(parts).split()) == " ".join(line.split())
    assert parts[1].startswith(" " * 9)
    assert not any(part.rstrip().endswith("t=0.7") for part in parts), "a number stays with its name"
    assert folded(line[:80].rstrip()) == [line[:80].rstrip()]
    words = "       " + "x" * 50 + " " + "y" * 50
    assert [part.strip() for part in folded(words)] == ["x" * 50, "y" * 50]


def test_a_run_leaves_a_log_of_all_it_printed(whole: Path) -> None:
    lines = (whole / "run.log").read_text().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d .* process ", lines[0])
    assert ", from random weights, into " in lines[1]
    assert any(line.startswith("joint  step 8/8  ") for line in lines)
    assert lines[-1].startswith("finished: ")


def test_the_log_says_what_ended_a_run(tmp_path: Path) -> None:
    from tiny_runs import composed

    from nld_train.errors import UserError
    from nld_train.training.metrics.run_log import RunLog

    config = composed(f"run.dir={tmp_path}", "logging.wandb.mode=disabled")
    with pytest.raises(UserError), RunLog(config, 0, 10, 0, MetricTable()):
        raise UserError("the loss is not\nfinite")
    assert (tmp_path / "run.log").read_text().endswith("\nended by UserError: the loss is not finite\n")
