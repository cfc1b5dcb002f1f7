"""Decoding during training: when it comes, what it records, and no trace in the weights."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from runs_that_decode import AR_STEPS, JOINT_STEPS, assert_same_training, config_of, decodings, train, untimed
from tiny_runs import records_of

from nld_train.data.samples import validation_samples
from nld_train.evaluation.held_out import prompt_of

MODES = ("ar", "diffusion", "linear", "quadratic")


def test_decoding_changes_no_weight(settings: tuple[str, ...], trained: Path, tmp_path: Path) -> None:
    """Nor anything of the optimizer's state, to the last bit; losses neither."""
    plain = train(*settings, f"run.dir={tmp_path}", hooked=False)
    assert_same_training(trained, plain)
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
            assert record["modes"][mode]["accepted_length"] <= 4
        # Every cycle brings the AR token too, and linear has two forwards for it.
        linear, quadratic = record["modes"]["linear"], record["modes"]["quadratic"]
        assert linear["tokens_per_forward"] < linear["accepted_length"]
        assert quadratic["forwards"] < linear["forwards"]
        assert 0 < record["share"] < 1
        pairs = record["agreements"]
        assert list(pairs) == [f"{one}/{other}" for one, other in combinations(MODES, 2)]
        assert pairs["linear/quadratic"] == 1
        for mode in MODES[1:]:
            assert pairs[f"ar/{mode}"] == record["modes"][mode]["agreement"]
        # Both give AR's text.
        assert pairs["diffusion/linear"] == pairs["diffusion/quadratic"] == pairs["ar/diffusion"]
    assert raw[0]["modes"] != raw[-1]["modes"]
    assert raw[-1]["seconds"] < sum(record["seconds"] for record in raw)


def test_samples_begin_with_the_held_out_prompts(settings: tuple[str, ...], trained: Path) -> None:
    samples = validation_samples(config_of(*settings), "joint", level=None)
    for record in decodings(trained).values():
        assert len(record["samples"]) == 2
        for index, texts in enumerate(record["samples"]):
            text = bytes(token - 4 for token in prompt_of(samples[index], 12)).decode(errors="replace")
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


def test_the_summary_has_the_first_and_the_last(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["stages"]["ar"]["decoding"] is None
    found, records = summary["stages"]["joint"]["decoding"], decodings(trained)
    assert list(found) == list(MODES)
    for mode, ends in found.items():
        for end, step in (("first", min(records)), ("last", max(records))):
            assert untimed(ends[end]) == {"step": step, **records[step]["modes"][mode]}


def test_the_report_has_a_panel_for_it(trained: Path, tmp_path: Path) -> None:
    import matplotlib.image

    from nld_train.training.metrics.report import write_report

    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("checkpoints"))

    def width() -> int:
        return int(matplotlib.image.imread(write_report(run)).shape[1])

    with_panels = width()
    assert with_panels == 2 * 2 * 6 * 110
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps({k: v for k, v in record.items() if k != "decoding"}) + "\n" for record in records_of(trained)
        )
    )
    assert 2 * width() == with_panels


DRAFTER_STEPS = 3


@pytest.fixture(scope="module")
def drafter(settings: tuple[str, ...], trained: Path) -> tuple[str, ...]:
    """A drafter stage over the weights of `trained`, whose blocks are not those of `evaluation`."""
    kept = [override for override in settings if not override.startswith("stages.")]
    adapter = ("stages.drafter.adapter.rank=4", "stages.drafter.adapter.block_size=6")
    steps = (
        "stages=drafter",
        f"stages.drafter.tokens={DRAFTER_STEPS * 4 * 48}",
        "stages.drafter.schedule.learning_rate=0.02",
    )
    return (*kept, *steps, *adapter, f"init.checkpoint={trained}")


@pytest.fixture(scope="module")
def drafted(drafter: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(*drafter, f"run.dir={tmp_path_factory.mktemp('drafted')}", hooked=True)


def test_a_drafter_stage_decodes_without_and_with_its_adapter(drafted: Path) -> None:
    found = decodings(drafted)
    assert list(found) == [2, DRAFTER_STEPS]
    for record in found.values():
        modes = record["modes"]
        assert list(modes) == ["ar", "linear", "linear + adapter"]
        assert list(record["agreements"]) == ["ar/linear", "ar/linear + adapter", "linear/linear + adapter"]
        # Every draft is verified by the model alone: the text is AR's with any adapter.
        assert set(record["agreements"].values()) == {1}
        for mode in ("linear", "linear + adapter"):
            assert list(modes[mode]["acceptance"]) == ["1", "2", "3", "4", "5"]
    first, last = (found[step]["modes"] for step in found)
    assert first["linear"] == last["linear"]
    assert last["linear + adapter"]["acceptance"] != last["linear"]["acceptance"]
    stage = json.loads((drafted / "summary.json").read_text())["stages"]["drafter"]
    assert list(stage["decoding"]) == ["ar", "linear", "linear + adapter"]


def test_decoding_changes_no_adapter(drafter: tuple[str, ...], drafted: Path, tmp_path: Path) -> None:
    plain = train(*drafter, f"run.dir={tmp_path}", hooked=False)
    assert_same_training(drafted, plain)
    assert not decodings(plain)
