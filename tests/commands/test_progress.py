"""Progress without a terminal: what the log of a long command shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from nld_train.progress import ProgressLines, duration, progress_bar


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_log_shows_that_a_long_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    advance = ProgressLines("import 8b", 16_000_000_000, in_bytes=True, clock=clock)
    for _ in range(800):
        clock.seconds += 0.5
        advance(20_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "import 8b: 1% (0.20 GB of 16.00 GB), 6m 35s left"
    # After 5, 15, 35 and 75 seconds, and then every minute; nothing at the end, which the command itself reports.
    sizes = [line.split("(")[1].split()[0] for line in lines]
    assert sizes == ["0.20", "0.60", "1.40", "3.00", "5.40", "7.80", "10.20", "12.60", "15.00"]


def test_a_short_command_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("texts", 3) as advance:
        for _ in range(3):
            advance(1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_counts_are_shown_as_counts(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    advance = ProgressLines("texts", 1319, in_bytes=False, clock=clock)
    clock.seconds += 6
    advance(0)
    clock.seconds += 10
    advance(16)
    assert capsys.readouterr().err.splitlines() == [
        "texts: 0% (0 of 1,319), ? left",
        "texts: 1% (16 of 1,319), 21m 43s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0s"), (41, "41s"), (59.6, "1m 00s"), (372, "6m 12s"), (11100, "3h 05m"), (1051200, "12d 04h")],
)
def test_times_are_shown_in_two_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_long_check_of_a_checkpoint_shows_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nld_train.training.checkpoint.manifest import find_damage, write_manifest

    monkeypatch.setattr("nld_train.progress._FIRST_LINE", 0.0)
    monkeypatch.setattr("nld_train.training.checkpoint.manifest._CHUNK_BYTES", 100)
    for name in ("model.json", ".metadata", "__0_0.distcp"):
        (tmp_path / name).write_bytes(b"0" * 1000)
    write_manifest(tmp_path, {})
    assert find_damage(tmp_path) is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 29, "one after every chunk but the last"
    assert lines[14].startswith(f"check {tmp_path.name}: 50% (")
    assert find_damage(tmp_path, part=1, parts=2) is None
    assert find_damage(tmp_path, parts=0) is None
    assert capsys.readouterr().err == "", "the other ranks show nothing, and neither does a check of sizes"
