"""What is meant for a GPU, in small on a CPU: that it runs, and that its ratios are of what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import attention, baseline, gpu, head, mfu, step
from benchmarks.shapes import layers_that_fit, random_run
from nld_train.errors import UserError
from nld_train.masking.layout import StreamLayout
from nld_train.masking.visibility import dense_mask

TINY = ("model=tiny", "execution.device=cpu", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")


def figures(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())["figures"]
    return found


def test_attention(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    attention.main(["--device", "cpu", "--length", "64", "--repeats", "2", "--results", str(tmp_path)])
    cases = figures(tmp_path, "attention")["cases"]
    # (2L + B + 1) / (L + 1) with B = L.
    assert cases["whole"]["limit"] == pytest.approx((2 * 64 + 64 + 1) / (64 + 1))
    for case in cases.values():
        assert set(case["rows"]) == {"causal", *attention.BACKENDS["cpu"]}
        for row in case["rows"].values():
            assert row["of_limit"] == pytest.approx(row["ratio"] / case["limit"])
    assert "packed samples of 64" in capfd.readouterr().out


def test_head(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All ways agree, and a way that has other rows or weights would not."""
    sizes = ["--vocabulary", "1000", "--length", "64", "--width", "16", "--chunk-rows", "32"]
    head.main(["--device", "cpu", *sizes, "--repeats", "1", "--results", str(tmp_path)])
    found = figures(tmp_path, "head")
    assert found["supervised_rows"] == 96
    assert set(found["rows"]) == {head.EVERYTHING, head.WHOLE, head.CHUNKED}
    assert set(found["missing"]) == set(head.PACKAGES.values())
    for row in found["rows"].values():
        assert max(row["errors"].values()) < 1e-5
    # 128, 96 and 32 rows of logits.
    memory = [found["rows"][name]["extra_bytes"] for name in (head.EVERYTHING, head.WHOLE, head.CHUNKED)]
    assert memory == sorted(memory, reverse=True)
    assert "not installed" in capfd.readouterr().out


def test_baseline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The straightforward step does the same work: its first loss is ours."""
    baseline.main(["--shape", "none", "--steps", "1", "--results", str(tmp_path), *TINY])
    found = figures(tmp_path, "baseline")
    ours, naive = (found["designs"][name] for name in (baseline.OURS, baseline.NAIVE))
    assert ours["loss"] == pytest.approx(naive["loss"], rel=1e-6)
    assert found["speed_ratio"] == pytest.approx(ours["tokens_per_second"] / naive["tokens_per_second"])
    assert found["head_memory_ratio"] == pytest.approx(ours["head_bytes"] / naive["head_bytes"])
    assert "target 1.5" in capfd.readouterr().out


def test_a_released_shape_in_the_step(tmp_path: Path) -> None:
    step.main(["--shape", "8b", "--steps", "1", "--warmup", "0", "--results", str(tmp_path), *TINY])
    found = figures(tmp_path, "step_8b")
    assert found["layers"] == 1
    assert found["of_limit"] == pytest.approx(found["time_ratio"] / found["limit"])


def test_visible_pairs_are_those_of_the_mask() -> None:
    documents = torch.tensor([0] * 7 + [1] * 1 + [2] * 11)
    for joint in (False, True):
        mask = dense_mask(StreamLayout.of(documents[None], 4, joint))
        assert step.visible_pairs(documents, 4, joint) == int(mask.sum())


def test_as_many_layers_as_fit() -> None:
    """18 bytes per parameter, and the activations: more memory, more layers, and never one that does not fit."""
    with random_run("8b", ["batch.sequence_length=32"]) as config:
        counts = [layers_that_fit(config, gibibytes * 2**30) for gibibytes in (30, 60, 80, 1000)]
        assert counts == sorted(counts)
        assert 1 <= counts[0] < counts[2] < 20
        assert counts[3] == config.model.num_hidden_layers
        with pytest.raises(UserError, match="not one layer"):
            layers_that_fit(config, 2**30)


def test_utilisation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--peak-tflops", "2", "--steps", "1", "--layers", "1", "--results", str(tmp_path)]
    mfu.main([*words, *TINY])
    kinds = figures(tmp_path, "mfu")["kinds"]
    local = kinds["local"]
    for kind in ("ar", "joint"):
        assert local["utilisation"][kind] == pytest.approx(local["operations"][kind] / local["seconds"][kind] / 2e12)
    assert kinds["transformer_engine"] == {"missing": "not installed"}
    assert "not installed" in capfd.readouterr().out


def test_a_run_of_gpu_rows_survives_what_fails_and_what_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [
        gpu.Row("slow", (), ("pytest", "-p", "no:cacheprovider", str(sleeper(tmp_path))), 3.0),
        gpu.Row("wrong", (), ("no_such_module",), 30.0),
        gpu.Row("good", (), ("pytest", "--version"), 30.0),
        gpu.Row("last", (), ("pytest", "--version"), 30.0),
    ]
    monkeypatch.setattr(gpu, "rows", lambda _: quick)
    assert gpu.main(["--small", "--results", str(tmp_path), "--only", "slow", "wrong", "good"]) == 1
    found = figures(tmp_path, "gpu")
    outcomes = {name: row["outcome"] for name, row in found.items()}
    assert outcomes == {"slow": "cut off", "wrong": "failed with status 1", "good": "done", "last": "not asked for"}
    assert "no_such_module" in found["wrong"]["output"]


def sleeper(folder: Path) -> Path:
    test = folder / "test_that_sleeps.py"
    test.write_text("import time\n\ndef test_sleep():\n    time.sleep(60)\n")
    return test


def test_a_gpu_run_without_time_reaches_nothing(tmp_path: Path) -> None:
    assert gpu.main(["--small", "--minutes", "0", "--results", str(tmp_path)]) == 1
    assert {row["outcome"] for row in figures(tmp_path, "gpu").values()} == {"not reached"}


@pytest.mark.long
def test_every_row_of_the_gpu_run_in_small(tmp_path: Path) -> None:
    assert gpu.main(["--small", "--results", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.glob("*.json")} == {
        "gpu",
        "step_3b",
        "step_8b",
        "step_14b",
        "attention",
        "head",
        "baseline",
        "mfu",
    }
    assert not list(tmp_path.glob("*.log"))
