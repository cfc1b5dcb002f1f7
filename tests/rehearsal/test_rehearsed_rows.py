"""Each row of `benchmarks.gpu` on the pretended device, on small shapes: it runs to its end as on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from rehearsals import rehearsed

from benchmarks import gpu

TINY = ("model=tiny", "execution.device=cuda", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")
SHORT = ("--length", "32", "--repeats", "1")
# The words of each row but those for its size; `mfu` starts `benchmarks.step`, here in the same process.
ROWS: dict[str, tuple[str, ...]] = {
    "step_8b": ("benchmarks.step", "--shape", "8b", "--steps", "1", "--warmup", "1", *TINY),
    "baseline": ("benchmarks.baseline", "--steps", "1", *TINY),
    "attention": ("benchmarks.attention", *SHORT, "--block-size", "8", "--heads", "4", "2", "16"),
    "forwards": ("benchmarks.forwards", "--shape", "none", "--repeats", "1", "--new-tokens", "8", *TINY),
    "mfu": ("benchmarks.mfu", "--kinds", "local", "--steps", "1", *TINY),
    "head": ("benchmarks.head", *SHORT, "--vocabulary", "64", "--width", "16", "--chunk-rows", "16"),
}


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = rehearsed("benchmarks", list(ROWS.values()))
    return found


def test_every_row_is_rehearsed() -> None:
    """The steps of the other shapes are the same command; the row of tests needs a GPU."""
    assert {row.name for row in gpu.rows(None)} == {*ROWS, "step_3b", "step_14b", "tests"}
    for row in gpu.rows(None):
        if row.name in ROWS:
            assert row.words[0] == ROWS[row.name][0]


@pytest.mark.long
def test_a_step(results: dict[str, dict[str, Any]]) -> None:
    found = results["step_8b_gpu"]
    assert found["device"] == "cuda:0"
    assert found["target"] == 1.1
    assert found["peak_tflops"] == 989
    assert found["of_limit"] == pytest.approx(found["time_ratio"] / found["limit"])
    # The pretended device counts the bytes of its tensors.
    for kind in ("ar", "joint"):
        assert found["planned_over_peak"][kind] == found["planned_bytes"][kind] / found["peak_bytes"][kind]


@pytest.mark.long
def test_the_straightforward_design_has_the_same_loss(results: dict[str, dict[str, Any]]) -> None:
    designs = results["baseline_gpu"]["designs"]
    assert designs["ours"]["loss"] == pytest.approx(designs["straightforward"]["loss"], rel=4e-3)
    assert 0 < results["baseline_gpu"]["head_memory_ratio"] < 1


@pytest.mark.long
def test_attention_of_every_backend(results: dict[str, dict[str, Any]]) -> None:
    for case in results["attention_gpu"]["cases"].values():
        assert {"flex", "split", "decomposed"} <= set(case["rows"])


@pytest.mark.long
def test_forwards(results: dict[str, dict[str, Any]]) -> None:
    assert len(results["forwards_gpu"]["targets"]) == 2


@pytest.mark.long
def test_utilisation(results: dict[str, dict[str, Any]]) -> None:
    assert set(results["mfu_gpu"]["kinds"]["local"]["utilisation"]) == {"ar", "joint"}


@pytest.mark.long
def test_head(results: dict[str, dict[str, Any]]) -> None:
    for row in results["head_gpu"]["rows"].values():
        assert max(row["errors"].values()) < 0.02
