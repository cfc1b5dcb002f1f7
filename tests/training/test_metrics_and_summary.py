"""What a run writes: `metrics.jsonl`, `summary.json`, `report.png`, and its Weights & Biases files."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from tiny_runs import STEP_TOKENS, newest_checkpoint, records_of
from training_runs import AR_STEPS, JOINT_STEPS, Train

from nld_train.config.compose import default_config
from nld_train.config.counts import step_flops
from nld_train.config.saved import read_saved_config
from nld_train.evaluation.decoding_metric import DecodingMetric
from nld_train.training.hooks.validation_metric import ValidationMetric
from nld_train.training.metrics.report import write_report
from nld_train.training.metrics.summary import progress_lines, write_summary

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


def test_the_time_left_of_an_ar_step_counts_the_longer_joint_steps(whole: Path) -> None:
    """By the operations of each stage's steps: the seconds of an AR step say little about those of a joint step."""
    config = read_saved_config((newest_checkpoint(whole) / "config.yaml").read_text(), default_config())
    ar, joint = (step_flops(config, config.stages[name]) for name in ("ar", "joint"))
    assert joint > 1.8 * ar
    records, pace = records_of(whole), []
    for record in records:
        pace.append(record["seconds"] / (ar if record["stage"] == "ar" else joint))
        left = max(0, AR_STEPS - record["step"]) * ar + min(JOINT_STEPS, len(records) - record["step"]) * joint
        assert record["seconds_left"] == pytest.approx(left * median(pace))


def test_an_ar_stage_has_no_noisy_stream(whole: Path) -> None:
    for record in records_of(whole)[:AR_STEPS]:
        assert record["diffusion_loss"] is None
        assert (record["maskable_tokens"], record["masked_tokens"]) == (0, 0)
        assert record["loss"] == record["ar_loss"]


def test_both_terms_both_denominators_and_alpha_make_the_loss(whole: Path) -> None:
    for record in records_of(whole)[AR_STEPS:]:
        assert (record["ar_weight"], record["alpha"]) == (1.0, 0.3)
        assert record["loss"] == pytest.approx(record["ar_loss"] + 0.3 * record["diffusion_loss"])
        assert record["maskable_tokens"] == record["diffusion_denominator"]
        # Where blocks are left out, less than a block of each of the 8 samples can be inert.
        assert STEP_TOKENS - 8 * 5 < record["maskable_tokens"] <= STEP_TOKENS
        assert record["ar_denominator"] == record["ar_tokens"]
        assert 0 < record["masked_tokens"] < record["maskable_tokens"]


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


def step_of(step: int, stage: str = "joint", **more: Any) -> dict[str, Any]:
    """A record as a run writes it, with losses that grow by one and by two a step."""
    figures = {"tokens": step, "step_tokens": 1, "seconds": 1.0, "tokens_per_second": 1.0, "loss": 0.0}
    figures |= {"stage_step": step, "seconds_left": 0.0}
    losses = {"ar_loss": float(step), "diffusion_loss": 2.0 * step, "grad_norm": 1.0, "learning_rate": 1.0}
    return {"stage": stage, "step": step, **figures, **losses, **more}


def write_records(directory: Path, records: list[dict[str, Any]]) -> None:
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def decoding_of(tokens_per_forward: float, agreement: float, modes: tuple[str, ...] = ("linear",)) -> dict[str, Any]:
    """A decoding as the hook records it: AR, and modes with equal figures."""
    counts = {"new_tokens": 64, "forwards": 32, "prefill": 1, "tokens_per_second": 1234.0}
    ar = {"tokens_per_forward": 1.02, "agreement": 1.0, "accepted_length": 1.0, **counts}
    own = {"tokens_per_forward": tokens_per_forward, "agreement": agreement, "accepted_length": 2.5, **counts}
    own["acceptance"] = {str(position): 1 / position for position in range(1, 8)}
    return {
        "modes": {"ar": ar, **dict.fromkeys(modes, own)},
        "agreements": {"ar/linear": agreement, "ar/quadratic": agreement, "linear/quadratic": 0.75},
        "samples": [{"prompt": "def", "ar": " main(\n\x1b", "linear": " main(\n\x1b", "quadratic": "x" * 80}],
        "seconds": 2.0,
        "share": 0.125,
    }


def test_the_console_shows_a_decoding_in_few_lines() -> None:
    found = DecodingMetric("decoding").lines(decoding_of(1.32, 0.55, ("linear", "quadratic")))
    speed = "1.32 tokens/forward  1.23k tok/s  agreement with ar 55%"
    accepted = "accepted length 2.50  by position 1:100% 2:50% 4:25% 7:14%"
    assert [line.strip() for line in found] == [
        "ar         1.02 tokens/forward  1.23k tok/s  agreement with ar 100%"
        "  (2.0 s, decoding is 12.5% of the time so far)",
        f"linear     {speed}  {accepted}",
        f"quadratic  {speed}  {accepted}",
        "agreement  linear/quadratic 75%",
        r"ar, linear: ' main(\n\x1b'",
        f"quadratic: '{'x' * 60}...'",
    ]


def test_the_console_says_what_validation_costs() -> None:
    value = {"ar_loss": 1.5, "diffusion_loss": {"0.5": 2.0}, "seconds": 1.25, "share": 0.05}
    (line,) = ValidationMetric("validation").lines(value)
    assert line.split("  ")[-1] == "(1.2 s, validation is 5.0% of the time so far)"


def test_the_end_of_a_run_says_whether_the_modes_get_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the first decoding to the last of each stage; a stage that decoded once has one figure."""
    validations = [{"validation": {"ar_loss": loss, "diffusion_loss": {}}} for loss in (1.5, 1.25)]
    records = [
        step_of(1, "ar"),
        step_of(2, decoding=decoding_of(1.02, 0.41), **validations[0]),
        step_of(3, decoding=decoding_of(5.0, 0.99)),
        step_of(4, decoding=decoding_of(1.32, 0.55, ("linear", "quadratic")), **validations[1]),
        step_of(5, "drafter", decoding=decoding_of(1.4, 1.0, ("linear + adapter",))),
    ]
    write_records(tmp_path, records)
    summary = write_summary(tmp_path)
    assert summary["stages"]["ar"]["decoding"] is None
    expected = [
        "joint, ar: 1.02 -> 1.02 tokens per forward, held-out loss 1.5000 -> 1.2500",
        "joint, linear: 1.02 -> 1.32 tokens per forward, agreement 0.41 -> 0.55",
        "joint, quadratic: 1.32 tokens per forward, agreement 0.55",
        "drafter, ar: 1.02 tokens per forward",
        "drafter, linear + adapter: 1.40 tokens per forward, agreement 1.00",
    ]
    assert progress_lines(summary) == expected
    assert all(line in shown_summary(tmp_path, capsys) for line in expected)
    assert write_report(tmp_path).read_bytes().startswith(b"\x89PNG")


def shown_summary(directory: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `launch/show_summary.py` prints."""
    script = Path(__file__).parents[2] / "launch" / "show_summary.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(script), str(directory)])
        capsys.readouterr()
        runpy.run_path(str(script), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_losses_of_the_summary_are_means_over_ten_steps(tmp_path: Path) -> None:
    write_records(tmp_path, [step_of(step) for step in range(1, 26)])
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
        train(tmp_path, "logging.wandb.mode=offline", limit, drawn=True)
    identity = (tmp_path / "wandb_id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    assert all(b"grad_norm" in file.read_bytes() for file in files)


def test_weights_and_biases_gets_tables_and_a_plot_of_a_decoding(data: tuple[str, ...], tmp_path: Path) -> None:
    """Real ones, offline: each leaves its table in a file."""
    from nld_train.config.compose import compose_config
    from nld_train.training.metrics.wandb_log import WandbLog

    log = WandbLog(compose_config([*data, f"run.dir={tmp_path}", "logging.wandb.mode=offline"]))
    log.write(step_of(1))
    log.write(step_of(2, decoding=decoding_of(1.32, 0.55, ("linear", "quadratic"))))
    log.finish()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/decoding")
    tables = {file.name.split("_")[0]: json.loads(file.read_text()) for file in folder.glob("*.json")}
    assert tables.keys() == {"figures", "samples", "acceptance"}
    figures = [dict(zip(tables["figures"]["columns"], row, strict=True)) for row in tables["figures"]["data"]]
    assert [row["mode"] for row in figures] == ["ar", "linear", "quadratic"]
    assert [row["tokens_per_forward"] for row in figures] == [1.02, 1.32, 1.32]
    assert tables["samples"]["columns"] == ["prompt", "ar", "linear", "quadratic"]
    assert tables["acceptance"]["data"][:2] == [[1, "linear", 1.0], [2, "linear", 0.5]]
    assert len(tables["acceptance"]["data"]) == 2 * 7
