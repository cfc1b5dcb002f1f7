"""`nld-sampler`, and its sampler in the commands that decode."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from reading_commands import FEW, Decoded, Report, per_forward, refusal
from tiny_runs import newest_checkpoint

from nld_train import bound, curve, decode, sampler

SMALL = ("--width", "16", "--layers", "1", "--heads", "2", "--components", "4", "--steps", "20")


@pytest.fixture(scope="module")
def checkpoint(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because a sampler is saved beside the weights."""
    return shutil.copytree(newest_checkpoint(trained), tmp_path_factory.mktemp("sampled") / "checkpoint")


@pytest.fixture(scope="module")
def learned(checkpoint: Path, reported: Report) -> dict[str, Any]:
    """What `nld-sampler` said; its sampler lies in the checkpoint."""
    return reported(sampler.main, checkpoint, "--block-length", 8, "--thresholds", "0,0.5,1", "--held-out", 0.4, *SMALL)


def test_a_sampler_is_trained_saved_and_judged(learned: dict[str, Any], checkpoint: Path) -> None:
    assert 0 < learned["auc"] <= 1
    assert 0 < learned["auc_of_confidence"] <= 1
    assert (learned["prompts"], learned["held_out_prompts"]) == (4, 2)
    assert set(learned["curves"]) == {"confidence", "sampler"}
    described = json.loads((checkpoint / "trained_sampler" / "sampler.json").read_text())
    assert (described["width"], described["auc"]) == (16, learned["auc"])
    # With a threshold of 0 both commit everything at once.
    assert learned["curves"]["sampler"][0] == learned["curves"]["confidence"][0]


@pytest.mark.usefixtures("learned")
def test_it_plugs_in_as_a_policy(
    decoded: Decoded,
    reported: Report,
    checkpoint: Path,
    trained_export: Path,
) -> None:
    """Beside the checkpoint's weights; and named, with the trained_export of the same weights."""
    asked = ("--mode", "diffusion", "--policy", "sampler", "--block-length", 8, "--threshold", 0.5)
    found = decoded(checkpoint, *asked)
    named = decoded(trained_export, *asked, "--sampler", checkpoint / "trained_sampler")
    assert [record["token_ids"] for record in found] == [record["token_ids"] for record in named]
    points = reported(curve.main, checkpoint, "--block-length", 8, "--thresholds", "0.5")["curves"]["sampler"]
    assert points[0]["tokens_per_forward"] == pytest.approx(per_forward(found, "diffusion + sampler"))
    ways = reported(bound.main, checkpoint, "--block-lengths", "8", "--threshold", 0.5)["bounds"][0]["ways"]
    assert ways["diffusion, trained sampler"]["tokens_per_forward"] == points[0]["tokens_per_forward"]


def test_the_sampler_of_another_model_is_refused(
    learned: dict[str, Any], checkpoint: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = sorted(path for path in newest_checkpoint(trained).parent.glob("step_*"))[0]
    assert older.name != newest_checkpoint(trained).name
    asked = ["--prompt", "seven", "--mode", "diffusion", "--policy", "sampler", *FEW]
    said = refusal(capsys, decode.main, str(older), *asked, "--sampler", str(checkpoint / "trained_sampler"))
    assert "trained for the weights of another model" in said
    for main in (curve.main, bound.main):
        words = ["--prompt", "seven", "--sampler", str(checkpoint / "trained_sampler")]
        assert "trained for the weights of another model" in refusal(capsys, main, str(older), *words)


def test_a_sampler_needs_prompts_and_masks(
    trained: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*FEW, *SMALL, "--sampler", str(tmp_path / "sampler")]
    assert "at least 2 prompts" in refusal(capsys, sampler.main, str(trained), "--prompt", "seven", *words)
    said = refusal(capsys, sampler.main, str(trained), "--prompts", str(prompts), "--block-length", "1", *words)
    assert "needs blocks of 2 or more" in said
    assert not (tmp_path / "sampler").exists()


def test_it_is_saved_in_a_directory_of_its_own(
    trained: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What stands there is replaced, so nothing else may stand there; refused before anything is decoded."""
    (tmp_path / "thesis.txt").write_text("years of work")
    words = [trained, "--prompts", prompts, *FEW, *SMALL, "--sampler"]
    said = refusal(capsys, sampler.main, *words, tmp_path)
    assert "holds thesis.txt, and a sampler is saved in a directory of its own" in said
    assert "is no directory" in refusal(capsys, sampler.main, *words, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
