"""The benchmark of data on a small corpus, and the page that the results are written to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import data, forwards, tables

TINY = ("execution.device=cpu", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")


@pytest.mark.long
def test_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--megabytes", "0.3", "--vocabulary", "300", "--repeats", "1", "--steps", "1", "--results", str(tmp_path)]
    data.main([*words, *TINY])
    found = json.loads((tmp_path / "data.json").read_text())["figures"]
    rows = found["preparation"]["rows"]
    for name in ("datasets.map", "tokenizers"):
        assert rows[data.OURS]["tokens"] == rows[name]["tokens"] > 50_000
        assert found["preparation"]["ratios"][name].keys() == {"wall", "processor"}
    assert set(rows) | set(found["preparation"]["missing"]) == {data.OURS, *data.PUBLIC}
    assert "`datasets.map`" in tables.TABLES["data"](tmp_path)
    assert found["loader"]["share"] == pytest.approx(found["loader"]["load_seconds"] / found["loader"]["step_seconds"])
    assert "processor time" in capfd.readouterr().out


def keep(folder: Path, name: str, figures: dict[str, Any], machine: dict[str, Any], revision: str = "0" * 40) -> None:
    """A result as `record.write_result` writes it."""
    result = {"figures": figures, "machine": machine, "git_revision": revision, "command": f"python -m {name}"}
    (folder / f"{name}.json").write_text(json.dumps(result))


def test_planned_memory_stands_beside_the_peak(tmp_path: Path) -> None:
    peaks = {"ar": 40 * 2**30, "joint": 60 * 2**30}
    planned = {"ar": 0.95, "joint": 1.04}
    keep(tmp_path, "step_8b_gpu", {"peak_bytes": peaks, "planned_over_peak": planned}, {"gpu": "H100", "cores": 1})
    row = "| 8b | 40.0 | 0.95 | 60.0 | 1.04 | 1.50 | planned: 0.90 to 1.10 |"
    assert row in tables.TABLES["memory"](tmp_path).splitlines()


def test_conversion_and_decoding_say_which_target_is_met(tmp_path: Path) -> None:
    seconds = {"convert": [2.0, 1.0, 4.0], "copy": [1.0, 1.0, 1.0]}
    found = {name: {"seconds": seconds, "ratio": ratio} for name, ratio in (("import", 0.5), ("export", 0.9))}
    keep(tmp_path, "convert", {"bytes": 4e9, "target_ratio": 0.8, **found}, {"cores": 2})
    assert tables.TABLES["convert"](tmp_path).splitlines()[2:] == [
        "| import | 2,000 | 4,000 | 0.50 | at least 0.8 | missed |",
        "| export | 2,000 | 4,000 | 0.90 | at least 0.8 | met |",
    ]
    rows = [
        {"engine": engine, "mode": mode, "batch_size": batch, "tokens_per_second_wall": 100.0 * batch, **more}
        for engine, mode, batch, more in (
            ("transformers", "ar", 16, {}),
            ("in tree", "linear", 4, {"tokens_per_forward": 1.5, "rows_at_work": 0.75}),
            ("in tree", "ar", 16, {"tokens_per_forward": 1.0, "active_sequences": 1.0}),
            ("in tree", "ar", 4, {"tokens_per_forward": 1.0, "rows_at_work": 1.0}),
        )
    ]
    targets = [{"name": "16 rows over one", "limit": 6.0, "wall": wall, "processor": 5.0} for wall in (6.0, 5.99)]
    keep(tmp_path, "decode", {"rows": rows, "targets": targets}, {"cores": 2})
    assert tables.TABLES["decode"](tmp_path).splitlines()[2:] == [
        "| GPU | not measured |  |  |  |  |  |  |",
        "| 2 CPU cores | ar | 4 | 400 |  |  | 1.00 | 100% |",
        "| 2 CPU cores | ar | 16 | 1,600 |  | 1,600 | 1.00 | 100% |",
        "| 2 CPU cores | linear | 4 | 400 |  |  | 1.50 | 75% |",
    ]
    met = [line.rpartition(" | ")[2] for line in tables.TABLES["decode_targets"](tmp_path).splitlines()[3:]]
    assert met == ["met |", "missed |"]


def plant_gpu_results(folder: Path, speed: float) -> None:
    """Results of every row of `benchmarks.gpu`, as if from a GPU; with a `speed` of 1 every figure is its target."""
    gpu = {"gpu": "NVIDIA H200", "cores": 16}
    step_figures = {
        "device": "cuda:0",
        "kernels": "local layers, flex attention",
        "peak_tflops": 1000.0,
        "layers": 9,
        "tokens": 4096,
        "operations": {"ar": 1e15, "joint": 2e15},
        "seconds": {"ar": 1 / speed / 0.52, "joint": 2 / speed / 0.52},
        "time_ratio": 2.2 / speed,
        "limit": 2.0,
        "of_limit": 1.1 / speed,
        "target": 1.1,
        "peak_bytes": {"ar": 40 * 2**30, "joint": 60 * 2**30},
        "planned_over_peak": {"ar": 1.1 / speed, "joint": 0.9},
    }
    for shape in ("3b", "8b", "14b"):
        keep(folder, f"step_{shape}_gpu", step_figures, gpu)
    fp8 = {"utilisation": {"ar": 0.744, "joint": 0.7}, "tflops": {"ar": 744.0 * speed, "joint": 700.0}}
    fp8 |= {"of_target": {"ar": speed}}
    kinds = {"transformer_engine, FP8": fp8, "transformer_engine": {"missing": "not installed"}}
    keep(folder, "mfu_gpu", {"device": "cuda:0", "kinds": kinds}, gpu)
    rows: dict[str, Any] = {"causal": {"seconds": 1e-3, "ratio": 1.0}}
    for backend in ("flex", "split", "decomposed"):
        rows[backend] = {"seconds": 2e-3, "ratio": 2.3, "of_limit": 1.15 / speed}
    case = {"limit": 2.06, "rows": rows, "missing": {}, "mask_seconds": 1e-3}
    keep(folder, "attention_gpu", {"device": "cuda:0", "length": 4096, "target": 1.15, "cases": {"whole": case}}, gpu)
    ratios = {"speed_ratio": 1.5 * speed, "speed_target": 1.5, "head_memory_ratio": 0.5 / speed}
    shape = {"device": "cuda:0", "model": "8b", "layers": 9}
    keep(folder, "baseline_gpu", {**shape, **ratios, "head_memory_target": 0.5}, gpu)
    milliseconds = {forwards.AR: 10.0, forwards.ONE_PER_PASS: 11.0}
    milliseconds |= {forwards.LINEAR: 11.0 / speed, forwards.DIFFUSION: 11.0 * 2.46 / 2.1 / speed}
    counted = {"tokens_per_forward": 1.0, "tokens_per_second": 100.0, "graph_share": 0.97}
    modes = {name: {"milliseconds_per_forward": each, **counted} for name, each in milliseconds.items()}
    found = {"device": "cuda:0", "weights": "random", "rows": modes, "targets": forwards.targets_of(modes, False)}
    keep(folder, "forwards_gpu", found, gpu)


@pytest.mark.parametrize(("speed", "word"), [(1.001, "met"), (0.99, "missed"), (None, "")])
def test_the_first_table_judges_every_target_of_a_gpu(tmp_path: Path, speed: float | None, word: str) -> None:
    if speed is not None:
        plant_gpu_results(tmp_path, speed)
    rows = [line.strip("| ").split(" | ") for line in tables.TABLES["targets"](tmp_path).splitlines()[2:]]
    of_gpu = [row for row in rows if not row[0].startswith(("loader", "nld-data"))]
    assert len(of_gpu) == 16
    if speed is None:
        assert all("not measured" in row[2] for row in of_gpu)
        return
    assert {row[3] for row in of_gpu} == {word}, of_gpu
    assert {row[4] for row in of_gpu} == {"NVIDIA H200"}
    assert "computed, at 3.63 tokens per forward" in " ".join(row[2] for row in of_gpu)
    # Every table of the page renders with results of a GPU, and lists them as sources.
    page = tables.with_tables(tables.PAGE.read_text(), tmp_path)
    assert "| `forwards_gpu.json` | NVIDIA H200 | 000000000000 |" in page
    assert "| local | ar | 5" in page
    assert "| 100 | 97% |" in page
    assert "| transformer_engine | joint | not installed |" in page


def test_a_changed_checkout_is_told_from_a_clean_one(tmp_path: Path) -> None:
    for name, revision in (("clean", "a" * 40), ("changed", f"{'b' * 40}-dirty")):
        keep(tmp_path, name, {"device": "cpu"}, {"gpu": "H100", "cores": 2}, revision)
    assert tables.TABLES["runs"](tmp_path).splitlines()[2:] == [
        "| `changed.json` | 2 CPU cores | bbbbbbbbbbbb-dirty | `python -m changed` |",
        "| `clean.json` | 2 CPU cores | aaaaaaaaaaaa | `python -m clean` |",
    ]


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
    gpu, cpu = {"gpu": "H100", "cores": 1}, {"cores": 2}
    keep(tmp_path, "step_8b_gpu", found, gpu)
    keep(tmp_path, "step_3b", found, gpu)
    keep(tmp_path, "step", {**found, "target": 1.25}, cpu)
    lines = tables.with_tables(page, tmp_path).splitlines()
    assert "| 8b | H100 | 9 | 4,096 | 2,048 | 2.00 | 1.60 | 1.25 | 1.10 |" in lines
    assert "| quickstart | 2 CPU cores | 9 | 4,096 | 2,048 | 2.00 | 1.60 | 1.25 | 1.25 |" in lines
    assert [line.split(" | ")[1] for line in lines if line.startswith(("| 3b", "| 14b", "| local"))] == [
        *["not measured"] * 2,
        *["ar", "joint"],
    ]
    assert {"before", "between"} <= set(lines)
    assert "old" not in lines
    wanted = tmp_path / "page.md"
    wanted.write_text(page)
    words = ["--page", str(wanted), "--results", str(tmp_path)]
    assert tables.main([*words, "--check"]) == 1
    assert tables.main(words) == 0
    assert tables.main([*words, "--check"]) == 0
