"""The benchmark of data in small, and the page that the results are written to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import data, tables

TINY = ("execution.device=cpu", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")


@pytest.mark.long
def test_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--megabytes", "0.3", "--vocabulary", "300", "--repeats", "1", "--steps", "1", "--results", str(tmp_path)]
    data.main([*words, *TINY])
    found = json.loads((tmp_path / "data.json").read_text())["figures"]
    ours, theirs = (found["preparation"]["rows"][name] for name in (data.OURS, data.THEIRS))
    assert ours["tokens"] == theirs["tokens"] > 50_000
    assert found["loader"]["share"] == pytest.approx(found["loader"]["load_seconds"] / found["loader"]["step_seconds"])
    assert "processor time" in capfd.readouterr().out


def test_the_page_says_what_the_results_say() -> None:
    """Run `python -m benchmarks.tables` where this fails."""
    page = tables.PAGE.read_text()
    assert set(re.findall(r"<!-- table: (\w+) -->", page)) == set(tables.TABLES)
    assert tables.with_tables(page, tables.RESULTS) == page


def test_tables_of_results(tmp_path: Path) -> None:
    """Figures land in their columns, a GPU's row takes no figures of a CPU, and what is not there is not measured."""
    page = "before\n<!-- table: step -->\nold\n<!-- end -->\nbetween\n<!-- table: mfu -->\n<!-- end -->\n"
    found = {
        "layers": 9,
        "tokens": 8192,
        "seconds": {"ar": 2.0, "joint": 4.0},
        "time_ratio": 2.0,
        "limit": 1.6,
        "of_limit": 1.25,
        "target": 1.1,
    }
    for name, machine in (("step_8b", {"gpu": "H100", "cores": 1}), ("step_3b", {"cores": 2}), ("step", {"cores": 2})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"figures": found, "machine": machine}))
    lines = tables.with_tables(page, tmp_path).splitlines()
    assert "| 8b | H100 | 9 | 4,096 | 2,048 | 2.00 | 1.60 | 1.25 | 1.10 |" in lines
    assert "| quickstart | 2 CPU cores | 9 | 4,096 | 2,048 | 2.00 | 1.60 | 1.25 |  |" in lines
    assert [line.split(" | ")[1] for line in lines if line.startswith(("| 3b", "| 14b", "| local"))] == [
        "not measured"
    ] * 3
    assert {"before", "between"} <= set(lines)
    assert "old" not in lines
    wanted = tmp_path / "page.md"
    wanted.write_text(page)
    words = ["--page", str(wanted), "--results", str(tmp_path)]
    assert tables.main([*words, "--check"]) == 1
    assert tables.main(words) == 0
    assert tables.main([*words, "--check"]) == 0
