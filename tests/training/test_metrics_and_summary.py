"""What a run leaves behind: `metrics.jsonl`, `summary.json`, `report.png`, and its Weights & Biases files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tiny_runs import STEP_TOKENS, records_of
from training_runs import AR_STEPS, JOINT_STEPS, Train

from nld_train.training.report import write_report, write_summary

PROMISED = {
    "stage",
    "step",
    "tokens",
    "loss",
    "ar_loss",
    "diffusion_loss",
    "ar_tokens",
    "maskable_tokens",
    "masked_tokens",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
}


def test_every_step_has_what_is_promised(whole: Path) -> None:
    records = records_of(whole)
    assert [record["stage"] for record in records] == ["ar"] * AR_STEPS + ["joint"] * JOINT_STEPS
    for step, record in enumerate(records, start=1):
        assert record.keys() >= PROMISED
        assert (record["step"], record["tokens"]) == (step, step * STEP_TOKENS)
        assert 0 < record["ar_tokens"] < STEP_TOKENS  # rows before a document's border are not supervised
        assert record["grad_norm"] > 0
        assert record["tokens_per_second"] > 0


def test_an_ar_stage_has_no_noisy_stream(whole: Path) -> None:
    for record in records_of(whole)[:AR_STEPS]:
        assert record["diffusion_loss"] is None
        assert (record["maskable_tokens"], record["masked_tokens"]) == (0, 0)
        assert record["loss"] == record["ar_loss"]


def test_both_terms_both_denominators_and_alpha_make_the_loss(whole: Path) -> None:
    for record in records_of(whole)[AR_STEPS:]:
        assert record["alpha"] == 0.3
        assert record["loss"] == pytest.approx(record["ar_loss"] + 0.3 * record["diffusion_loss"])
        assert record["maskable_tokens"] == record["diffusion_denominator"] == STEP_TOKENS
        assert record["ar_denominator"] == record["ar_tokens"]
        assert 0 < record["masked_tokens"] < STEP_TOKENS


def test_each_stage_has_a_schedule_of_its_own(whole: Path) -> None:
    """Two steps of warmup, then two of linear decay from 2e-3 to 2e-4."""
    rates = [record["learning_rate"] for record in records_of(whole)]
    assert rates == pytest.approx([1e-3, 2e-3, 1.1e-3, 0.2e-3] * 2)


def test_the_summary_has_what_is_promised(whole: Path) -> None:
    summary, records = json.loads((whole / "summary.json").read_text()), records_of(whole)
    assert list(summary["stages"]) == ["ar", "joint"]
    ar, joint = summary["stages"].values()
    assert (ar["steps"], ar["tokens"]) == (AR_STEPS, AR_STEPS * STEP_TOKENS)
    assert joint["seconds"] == pytest.approx(sum(record["seconds"] for record in records[AR_STEPS:]))
    assert joint["tokens_per_second"] > 0
    assert ar["first_ar_loss"] == pytest.approx(sum(record["ar_loss"] for record in records[:AR_STEPS]) / AR_STEPS)
    assert ar["last_diffusion_loss"] is None
    assert math.isfinite(joint["last_diffusion_loss"])
    assert {"nld-train", "torch", "megatron-core"} <= summary["versions"].keys()
    assert "git_revision" in summary


def test_losses_of_the_summary_are_means_over_ten_steps(tmp_path: Path) -> None:
    records = [
        {"stage": "joint", "step": step, "tokens": step, "step_tokens": 1, "seconds": 1.0, "tokens_per_second": 1.0}
        | {"loss": 0.0, "ar_loss": float(step), "diffusion_loss": 2.0 * step, "grad_norm": 1.0, "learning_rate": 1.0}
        for step in range(1, 26)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    stage = write_summary(tmp_path)["stages"]["joint"]
    assert (stage["first_ar_loss"], stage["last_ar_loss"]) == (5.5, 20.5)
    assert (stage["first_diffusion_loss"], stage["last_diffusion_loss"]) == (11.0, 41.0)
    assert write_report(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_report_is_a_picture(whole: Path) -> None:
    from matplotlib import image

    pixels = image.imread(whole / "report.png")
    assert pixels.shape[0] > 400
    assert pixels.std() > 0.01


def test_weights_and_biases_gets_every_step(train: Train, tmp_path: Path) -> None:
    """Offline, and with one identity for a run that was stopped in between."""
    for limit in ("run.max_steps=2", "run.max_steps=3"):
        train(tmp_path, "logging.wandb.mode=offline", limit)
    identity = (tmp_path / "wandb_id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    assert all(b"grad_norm" in file.read_bytes() for file in files)
