"""Benchmarks for a GPU on small shapes on a CPU: they run, and their ratios follow from their figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from benchmarks import attention, baseline, forwards, head, mfu, step, stepper, tables
from benchmarks.arithmetic import arithmetic, used_layout
from benchmarks.causal_kernels import CAUSAL, CUDNN, FLASH, FLASH_3
from benchmarks.head_variants import CHUNKED, EVERYTHING, FOREIGN, WHOLE
from benchmarks.record import result_name
from benchmarks.shapes import as_many_as_fit, layers_that_fit, random_run
from nld_train.config.compose import compose_config
from nld_train.config.counts import training_flops
from nld_train.errors import UserError
from nld_train.masking.visibility import dense_mask
from nld_train.model.attention import flex

TINY = ("model=tiny", "execution.device=cpu", "batch.global_size=2", "batch.micro_size=2", "batch.sequence_length=32")

ONES = {"ar": 1.0, "joint": 1.0}


def figures(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())["figures"]
    return found


def test_attention(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    attention.main(["--device", "cpu", "--length", "64", "--repeats", "2", "--results", str(tmp_path)])
    cases = figures(tmp_path, "attention")["cases"]
    # (2L + B + 1) / (L + 1) with B = L.
    assert cases["whole"]["limit"] == pytest.approx((2 * 64 + 64 + 1) / (64 + 1))
    for name, case in cases.items():
        causals = {CAUSAL, FLASH} if name == "whole" else {CAUSAL}
        assert set(case["rows"]) == {*causals, *attention.BACKENDS["cpu"]}
        assert set(case["missing"]) == {CUDNN, FLASH_3}
        fastest = min(causals, key=lambda each: case["rows"][each]["seconds"])
        assert case["fastest_causal"] == fastest
        assert case["rows"][fastest]["ratio"] == 1
        for backend in attention.BACKENDS["cpu"]:
            row = case["rows"][backend]
            assert row["of_limit"] == pytest.approx(row["ratio"] / case["limit"])
        assert case["mask_seconds"] > 0
    assert "packed samples of 64" in capfd.readouterr().out
    assert tables.TABLES["attention"](tmp_path).count("making the block mask") == 2


def test_what_is_measured_is_kept_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is cut off in its second case, variant or kind has its first."""

    def fails_second(module: Any, name: str) -> None:
        plain, calls = getattr(module, name), []

        def call(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return plain(*arguments)

        monkeypatch.setattr(module, name, call)

    for module, name, words in (
        (attention, "_case", ["--device", "cpu", "--length", "8", "--backends", "dense", "--repeats", "1"]),
        (head, "_row", ["--device", "cpu", "--length", "8", "--vocabulary", "64", "--width", "8", "--repeats", "1"]),
        (mfu, "_missing", ["--peak-tflops", "1", *TINY]),
    ):
        fails_second(module, name)
        monkeypatch.setattr(mfu, "_step", lambda *_: {"operations": {"ar": 1.0, "joint": 2.0}, "seconds": ONES})
        with pytest.raises(KeyboardInterrupt):
            module.main([*words, "--results", str(tmp_path)])
    assert set(figures(tmp_path, "attention")["cases"]) == {"whole"}
    assert set(figures(tmp_path, "head")["rows"]) == {CHUNKED}
    assert set(figures(tmp_path, "mfu")["kinds"]) == {"local"}


def test_head(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All variants agree; one with other rows or weights would not."""
    sizes = ["--vocabulary", "1000", "--length", "64", "--width", "16", "--chunk-rows", "32"]
    head.main(["--device", "cpu", *sizes, "--repeats", "1", "--results", str(tmp_path)])
    found = figures(tmp_path, "head")
    assert found["supervised_rows"] == 96
    assert set(found["rows"]) == {EVERYTHING, WHOLE, CHUNKED}
    assert set(found["missing"]) == set(FOREIGN)
    # Hidden states of 2 x 64 positions and the head, in float32.
    assert found["limit_bytes"] == 4 * 16 * (2 * 64 + 1000)
    for row in found["rows"].values():
        assert max(row["errors"].values()) < 1e-5
        assert row["bytes_of_limit"] == pytest.approx(row["extra_bytes"] / found["limit_bytes"])
        assert row["limit_seconds"] > 0
    # 128, 96 and 32 rows of logits.
    memory = [found["rows"][name]["extra_bytes"] for name in (EVERYTHING, WHOLE, CHUNKED)]
    assert memory == sorted(memory, reverse=True)
    assert "not installed" in capfd.readouterr().out
    assert "cut-cross-entropy, exact | not installed" in tables.TABLES["head"](tmp_path)


def test_baseline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The straightforward step does the same work: its first loss is ours."""
    baseline.main(["--shape", "none", "--steps", "1", "--results", str(tmp_path), *TINY])
    found = figures(tmp_path, "baseline")
    ours, naive = (found["designs"][name] for name in (baseline.OURS, baseline.NAIVE))
    assert ours["loss"] == pytest.approx(naive["loss"], rel=1e-6)
    assert found["speed_ratio"] == pytest.approx(ours["tokens_per_second"] / naive["tokens_per_second"])
    assert found["head_memory_ratio"] == pytest.approx(ours["head_bytes"] / naive["head_bytes"])
    assert "target 1.5" in capfd.readouterr().out


def test_forwards_of_random_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Speed-ups follow from the times and the published tokens per forward, and are said to be computed."""
    words = ["--shape", "none", "--new-tokens", "9", "--prompt-tokens", "5", "--block-length", "4", "--repeats", "2"]
    forwards.main([*words, "--results", str(tmp_path), *TINY])
    found = figures(tmp_path, "forwards")
    assert found["weights"] == "random"
    rows = found["rows"]
    assert list(rows) == [forwards.AR, forwards.ONE_PER_PASS, forwards.DIFFUSION, forwards.LINEAR]
    # The prefill makes the first token. Two blocks of 4 take a pass for each mask, and one to append.
    assert rows[forwards.AR]["forwards"] == 8
    assert rows[forwards.ONE_PER_PASS]["forwards"] == 3 + 1 + 3 + 1
    assert rows[forwards.AR]["tokens_per_second"] == pytest.approx(
        9 / (9 * rows[forwards.AR]["milliseconds_per_forward"] / 1e3)
    )
    linear, diffusion = found["targets"]
    times = {name: row["milliseconds_per_forward"] for name, row in rows.items()}
    assert linear["ratio"] == pytest.approx(3.63 / (9 / 8) * times[forwards.AR] / times[forwards.LINEAR])
    assert diffusion["ratio"] == pytest.approx(
        2.46 / (9 / 8) * times[forwards.ONE_PER_PASS] / times[forwards.DIFFUSION]
    )
    assert "computed, at 3.63 tokens per forward" in capfd.readouterr().out


def test_speed_ups_of_a_trained_model_are_those_of_its_tokens() -> None:
    speeds = {forwards.AR: 100.0, forwards.ONE_PER_PASS: 90.0, forwards.DIFFUSION: 180.0, forwards.LINEAR: 350.0}
    rows = {name: {"tokens_per_second": speed} for name, speed in speeds.items()}
    found = forwards.targets_of(rows, counted=True)
    assert [(row["ratio"], row["target"], row["kind"]) for row in found] == [
        (3.5, 3.3, "measured"),
        (2.0, 2.1, "measured"),
    ]


def test_utilisation_in_fp8_has_a_target_of_its_own() -> None:
    """744 TFLOP/s of an AR step; a joint step has none."""
    step_figures = {"operations": {"ar": 372e12, "joint": 700e12}, "seconds": {"ar": 1.0, "joint": 2.0}}
    found = mfu.utilisation(step_figures, 1000e12, mfu.FP8)
    assert found["tflops"] == {"ar": 372.0, "joint": 350.0}
    assert found["of_target"] == {"ar": 0.5}
    assert mfu.utilisation(step_figures, 1000e12, mfu.LOCAL)["of_target"]["joint"] == pytest.approx(0.35 / 0.52)
    assert [mfu.target_of(mfu.FP8, kind) for kind in ("ar", "joint")] == ["744 TFLOP/s", ""]


def test_a_released_shape_in_the_step(tmp_path: Path) -> None:
    step.main(["--shape", "8b", "--steps", "1", "--warmup", "0", "--results", str(tmp_path), *TINY])
    found = figures(tmp_path, "step_8b")
    assert found["layers"] == 1
    assert found["of_limit"] == pytest.approx(found["time_ratio"] / found["limit"])
    assert found["target"] == 1.25
    assert 0 < found["planned_bytes"]["ar"] < found["planned_bytes"]["joint"]
    assert (found["planned_over_peak"], found["peak_tflops"]) == (None, None)
    assert found["layers_beyond_memory"] == []
    # The update is a part of every step.
    assert 0 < found["update_seconds"] < found["seconds"]["ar"]


def test_a_step_on_a_gpu_has_a_name_of_its_own() -> None:
    names = [result_name("mfu", each) for each in ("cpu", "cuda:0", torch.device("cuda"))]
    assert names == [
        "mfu",
        "mfu_gpu",
        "mfu_gpu",
    ]


def test_every_timed_step_makes_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents isolated: the cache is emptied before a step. Otherwise all masks are equal, and it is kept."""
    monkeypatch.setattr(stepper, "train_step", lambda *_: SimpleNamespace(loss=0.0))
    for documents, left in (("isolate", 0), ("ignore", 1)):
        flex._masks["a mask"] = MagicMock()
        maker: Any = MagicMock(device=torch.device("cpu"), samples=MagicMock())
        maker.config = compose_config([f"data.documents={documents}"])
        maker.optimizer.param_groups = []
        stepper.Stepper.step(maker, "ar")
        assert len(flex._masks) == left
    flex._masks.clear()


def test_operations_are_those_of_used_tokens() -> None:
    """Two conversations of 5 and 4 tokens and padding; the blocks of two answers, filled, and an inert one."""
    answers = [False, False, True, True, True, False, True, True, True, False, False, False]
    sample = {
        "tokens": torch.zeros(1, 12),
        "documents": torch.tensor([[0] * 5 + [1] * 4 + [2] * 3]),
        "answers": torch.tensor([answers]),
        "supervised": torch.tensor([[*answers[1:]]]),
        "blocks": torch.arange(12)[None] // 4,
        "begins": torch.tensor([[2] * 4 + [6] * 4 + [0] * 4]),
        "maskable": torch.tensor([[True] * 8 + [False] * 4]),
        "masked": torch.tensor([[True, False] * 4 + [False] * 4]),
    }
    # Of 3 + 3 answer tokens each is a target; causal pairs, then 4 noisy tokens over 2 and over 1 clean tokens.
    clean, noisy = 5 * 6 // 2 + 4 * 5 // 2, 4 * (4 + 2) + 4 * (4 + 1)
    config = compose_config([])
    for two_streams, positions, pairs, rows in ((False, 9, clean, 6), (True, 17, clean + noisy, 10)):
        assert int(dense_mask(used_layout(sample, two_streams)).sum()) == pairs
        assert arithmetic(config, [sample], two_streams) == training_flops(config.model, positions, pairs, rows)


def test_as_many_layers_as_fit() -> None:
    """18 bytes per parameter, and the activations: more memory, more layers, and never one that does not fit."""
    with random_run("8b", ["batch.sequence_length=32"]) as config:
        counts = [layers_that_fit(config, gibibytes * 2**30) for gibibytes in (30, 60, 80, 1000)]
        assert counts == sorted(counts)
        assert 1 <= counts[0] < counts[2] < 20
        assert counts[3] == config.model.num_hidden_layers
        with pytest.raises(UserError, match="not one layer"):
            layers_that_fit(config, 2**30)


def test_fewer_layers_where_memory_is_short() -> None:
    tried = []

    def attempt(layers: int) -> str:
        tried.append(layers)
        if layers > 13:
            raise torch.cuda.OutOfMemoryError
        return "found"

    assert as_many_as_fit(17, attempt) == ("found", [17, 15, 14])
    assert tried == [17, 15, 14, 13]
    with pytest.raises(UserError, match="15 do not fit into the device's memory"):
        as_many_as_fit(15, attempt, fewest=15)


@pytest.mark.long
def test_utilisation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--peak-tflops", "2", "--steps", "1", "--layers", "1", "--results", str(tmp_path)]
    mfu.main([*words, *TINY])
    kinds = figures(tmp_path, "mfu")["kinds"]
    local = kinds["local"]
    for kind in ("ar", "joint"):
        share = local["operations"][kind] / local["seconds"][kind] / 2e12
        assert local["utilisation"][kind] == pytest.approx(share)
        assert local["of_target"][kind] == pytest.approx(share / 0.52)
    assert kinds[mfu.ENGINE] == kinds[mfu.FP8] == {"missing": "not installed"}
    printed = capfd.readouterr().out
    assert "not installed" in printed
    assert "52%" in printed
    with pytest.raises(UserError, match="none of them"):
        mfu.main(["--kinds", "transformer_engine", *words, *TINY])
