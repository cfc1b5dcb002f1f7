"""The run of all GPU rows: the outcome of each, however it ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.row_process import GRACE

SLEEPS = """
import os, pathlib, time

def test_sleep():
    pathlib.Path({!r}).write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins of installed libraries import these libraries, in each row that starts pytest."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())["figures"]
    return found


def outcomes(folder: Path) -> dict[str, str]:
    return {name: row["outcome"] for name, row in figures(folder).items()}


def pytest_row(folder: Path, name: str, text: str, seconds: float = 60.0) -> gpu.Row:
    test = folder / f"test_{name}.py"
    test.write_text(text)
    return gpu.Row(name, (), ("pytest", "-p", "no:cacheprovider", str(test)), seconds)


@pytest.mark.usefixtures("no_plugins")
def test_a_row_that_fails_or_takes_too_long_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests that were all skipped, or that there were none of, are no success."""
    good = "def test_good():\n    pass\n"
    quick = [
        pytest_row(tmp_path, "slow", SLEEPS.format(str(tmp_path / "pid")), 1.0),
        gpu.Row("wrong", (), ("no_such_module",), 30.0),
        pytest_row(tmp_path, "skipped", f"import pytest\n\n@pytest.mark.skip\n{good}"),
        pytest_row(tmp_path, "empty", ""),
        pytest_row(tmp_path, "good", good),
        gpu.Row("last", (), ("no_such_module",), 30.0),
    ]
    monkeypatch.setattr(gpu, "rows", lambda _: quick)
    selected = [row.name for row in quick[:-1]]
    assert gpu.main(["--small", "--results", str(tmp_path), "--only", *selected]) == 1
    assert outcomes(tmp_path) == {
        "slow": "cut off",
        "wrong": "failed with status 1",
        "skipped": "nothing ran",
        "empty": "nothing ran",
        "good": "done",
        "last": "not selected",
    }
    assert "no_such_module" in figures(tmp_path)["wrong"]["output"]


@pytest.mark.usefixtures("no_plugins")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_row_and_keeps_what_there_is(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process stays behind with the GPU, and `gpu.json` said all the time how far the run was."""
    sleeping = tmp_path / "pid"
    rows = [pytest_row(tmp_path, name, SLEEPS.format(str(sleeping))) for name in ("slow", "next")]
    monkeypatch.setattr(gpu, "rows", lambda _: rows)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    seen: list[dict[str, str]] = []

    def kill() -> None:
        while not (sleeping.exists() and sleeping.read_text()):
            time.sleep(0.05)
        seen.append(outcomes(tmp_path))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert gpu.main(["--small", "--results", str(tmp_path)]) == 128 + number
    thread.join()
    assert seen == [{"slow": "running", "next": "not reached"}]
    assert outcomes(tmp_path) == {"slow": f"stopped by {number.name}", "next": "not reached"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(sleeping.read_text()), 0)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_gpu_run_without_time_reaches_nothing(tmp_path: Path) -> None:
    assert gpu.main(["--small", "--minutes", "0", "--results", str(tmp_path)]) == 1
    assert set(outcomes(tmp_path).values()) == {"not reached"}


def test_the_rows_fit_ten_minutes_the_most_important_first() -> None:
    rows = gpu.rows(None)
    assert [row.name for row in rows] == [
        "step_8b",
        "baseline",
        "attention",
        "forwards",
        "mfu",
        "step_3b",
        "step_14b",
        "head",
        "tests",
    ]
    assert sum(row.seconds + GRACE for row in rows) <= 600
    assert [row.name for row in gpu.rows(Path("runs/one"))][-2:] == ["forwards_checkpoint", "decode"]


def test_a_row_whose_package_is_missing_is_skipped_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = gpu.Row("mfu", ("no_such_module",), ("no_such_module",), 30.0, package="no_such_package")
    monkeypatch.setattr(gpu, "rows", lambda _: [row])
    assert gpu.main(["--results", str(tmp_path)]) == 0
    assert figures(tmp_path) == {"mfu": {"outcome": "skipped", "reason": "no_such_package is not installed"}}
    # Small rows run on a CPU, without it.
    assert gpu.main(["--small", "--results", str(tmp_path)]) == 1


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_kind_of_row_of_the_gpu_run_in_small(tmp_path: Path) -> None:
    """The steps of the larger shapes are the same command, and their weights alone take minutes on a CPU."""
    larger = {"step_8b", "step_14b"}
    selected = [row.name for row in gpu.rows(None) if row.name not in larger]
    assert gpu.main(["--small", "--minutes", "20", "--results", str(tmp_path), "--only", *selected]) == 0, (
        tmp_path / "gpu.json"
    ).read_text()
    written = {"gpu", "step_3b", "attention", "head", "baseline", "mfu", "forwards"}
    assert {path.stem for path in tmp_path.glob("*.json")} == written
    assert not list(tmp_path.glob("*.log"))
