"""Decoding during training: the same record under every layout, and no trace in the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_that_decode import AR_STEPS, JOINT_STEPS, config_of, train
from tiny_runs import newest_checkpoint, records_of, saved_tensors, torchrun

from nld_train.data.samples import validation_samples
from nld_train.evaluation.decoding_hook import prompt_of

TIMED = ("seconds", "share", "tokens_per_second")
WORKER = Path(__file__).with_name("layout_worker.py")
MODES = ("ar", "diffusion", "linear", "quadratic")


def decodings(directory: Path) -> dict[int, dict[str, Any]]:
    """The records of each step that decoded, without what a clock decides."""
    return {record["step"]: untimed(record["decoding"]) for record in records_of(directory) if "decoding" in record}


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in TIMED}
    return {name: untimed(value) if isinstance(value, dict) else value for name, value in kept.items()}


def test_decoding_changes_no_weight(settings: tuple[str, ...], trained: Path, tmp_path: Path) -> None:
    """Nor anything of the optimizer's state, to the last bit; losses neither."""
    plain = train(*settings, f"run.dir={tmp_path}", hooked=False)
    tensors, others = saved_tensors(newest_checkpoint(trained)), saved_tensors(newest_checkpoint(plain))
    assert tensors.keys() == others.keys()
    assert any("exp_avg" in name for name in tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert [record["loss"] for record in records_of(trained)] == [record["loss"] for record in records_of(plain)]
    assert not decodings(plain)


def test_it_comes_at_its_interval_and_at_the_end_of_a_joint_stage(trained: Path) -> None:
    assert list(decodings(trained)) == [AR_STEPS + 2, AR_STEPS + 4, AR_STEPS + JOINT_STEPS]


def test_what_is_recorded(trained: Path) -> None:
    raw = [record["decoding"] for record in records_of(trained) if "decoding" in record]
    for record in raw:
        assert list(record["modes"]) == list(MODES)
        assert all(record["modes"][mode]["agreement"] == 1 for mode in ("ar", "linear", "quadratic"))
        for figures in record["modes"].values():
            assert figures["tokens_per_forward"] == figures["new_tokens"] / figures["forwards"]
            assert figures["tokens_per_second"] > 0
        for mode in ("linear", "quadratic"):
            shares = list(record["modes"][mode]["acceptance"].values())
            assert list(record["modes"][mode]["acceptance"]) == ["1", "2", "3"]
            assert shares == sorted(shares, reverse=True)
            assert record["modes"][mode]["accepted_per_cycle"] <= 4
        # Every cycle brings the AR token too, and linear has two forwards for it.
        linear, quadratic = record["modes"]["linear"], record["modes"]["quadratic"]
        assert linear["tokens_per_forward"] < linear["accepted_per_cycle"]
        assert quadratic["forwards"] < linear["forwards"]
        assert 0 < record["share"] < 1
    assert raw[0]["modes"] != raw[-1]["modes"]
    assert raw[-1]["seconds"] < sum(record["seconds"] for record in raw)


def test_samples_begin_with_the_held_out_prompts(settings: tuple[str, ...], trained: Path) -> None:
    samples = validation_samples(config_of(*settings), level=None)
    for record in decodings(trained).values():
        assert len(record["samples"]) == 2
        for place, texts in enumerate(record["samples"]):
            text = bytes(token - 4 for token in prompt_of(samples[place], 12)).decode(errors="replace")
            assert texts["prompt"] == text
            assert texts["ar"] == texts["linear"] == texts["quadratic"]


def test_a_prompt_is_the_beginning_of_one_document() -> None:
    tokens = torch.arange(10, 22)
    documents = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2])
    sample = {"tokens": tokens, "documents": documents}
    assert prompt_of(sample, 3) == [13, 14, 15]
    assert prompt_of(sample, 9) == [13, 14, 15, 16]
    assert prompt_of({"tokens": tokens, "documents": torch.arange(12)}, 3) == [10]
    assert prompt_of({"tokens": tokens, "documents": torch.zeros(12)}, 20) == list(range(10, 21))


def test_a_run_that_goes_on_decodes_the_same(settings: tuple[str, ...], trained: Path, tmp_path: Path) -> None:
    for limit in (AR_STEPS + 3, 100):
        train(*settings, f"run.dir={tmp_path}", f"run.max_steps={limit}", hooked=True)
    assert decodings(tmp_path) == decodings(trained)


LAYOUTS = {
    "tensor": ("parallel.tensor=2", "parallel.sequence=true", "execution.recompute=full"),
    "pipeline": ("parallel.pipeline=2", "parallel.virtual_pipeline=2"),
    "context": ("parallel.context=2",),
    "data": ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"),
}


@pytest.fixture(scope="module")
def still(settings: tuple[str, ...], trained: Path) -> tuple[str, ...]:
    """Trains one step without moving: layouts differ by rounding, which Adam's first steps make large."""
    rates = [f"stages.joint.schedule.{rate}=1e-30" for rate in ("learning_rate", "final_learning_rate")]
    return (*settings, f"init.checkpoint={trained}", "run.stages=[joint]", "stages.joint.tokens=192", *rates)


@pytest.fixture(scope="module")
def by_layout(still: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two processes in each layout; one group of processes makes them all."""
    folder = tmp_path_factory.mktemp("layouts")
    runs = [[*still, f"run.dir={folder / name}", *layout] for name, layout in LAYOUTS.items()]
    (folder / "runs.json").write_text(json.dumps(runs))
    done = torchrun(2, [str(WORKER), str(folder / "runs.json")], timeout=400)
    (folder / "output").write_text(done.output)
    assert done.status == 0, done.output[-6000:]
    return {name: folder / name for name in LAYOUTS}


@pytest.fixture(scope="module")
def alone(still: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(*still, f"run.dir={tmp_path_factory.mktemp('alone')}", hooked=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_decodes_the_same(by_layout: dict[str, Path], alone: Path, layout: str) -> None:
    assert list(decodings(alone)) == [1]
    assert decodings(by_layout[layout]) == decodings(alone)


def test_what_is_shown(by_layout: dict[str, Path], alone: Path) -> None:
    printed = (by_layout["tensor"].parent / "output").read_text()
    (record,) = [record["decoding"] for record in records_of(by_layout["tensor"])]
    for mode, figures in record["modes"].items():
        assert f"{mode:<10}  {figures['tokens_per_forward']:.2f} tokens/forward" in printed
    assert "of the time so far" in printed
    summary = json.loads((alone / "summary.json").read_text())
    assert untimed(summary["stages"]["joint"]["decoding"]) == decodings(alone)[1]["modes"]


def test_the_report_has_a_panel_for_it(trained: Path) -> None:
    import matplotlib.image

    from nld_train.training.report import write_report

    def width() -> int:
        return int(matplotlib.image.imread(write_report(trained)).shape[1])

    with_panels = width()
    records = records_of(trained)
    whole = (trained / "metrics.jsonl").read_text()
    without = ({**record} for record in records)
    (trained / "metrics.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in record.items() if k != "decoding"}) + "\n" for record in without)
    )
    try:
        assert width() < with_panels
    finally:
        (trained / "metrics.jsonl").write_text(whole)
        write_report(trained)
