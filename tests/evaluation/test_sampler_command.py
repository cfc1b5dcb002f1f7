"""`nld-sampler`, and its sampler in the commands that decode."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_helpers import FEW, Decoded, Report, per_forward, refusal
from test_harness import DOCUMENTS, STOPS, TASKS
from tiny_runs import newest_checkpoint

from nld_train.commands import bound, curve, decode, sampler
from nld_train.commands import eval as evaluate

SMALL = (
    "--width",
    "16",
    "--layers",
    "1",
    "--heads",
    "2",
    "--components",
    "4",
    "--steps",
    "20",
    "--trained-block-lengths",
    "4,8",
)


@pytest.fixture(scope="module")
def checkpoint(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because a sampler is saved beside the weights."""
    return shutil.copytree(newest_checkpoint(trained), tmp_path_factory.mktemp("sampled") / "checkpoint")


@pytest.fixture(scope="module")
def report(checkpoint: Path, reported: Report) -> dict[str, Any]:
    """The report of `nld-sampler`; its sampler is in the checkpoint."""
    return reported(sampler.main, checkpoint, "--block-length", 8, "--thresholds", "0,0.5,1", "--held-out", 0.4, *SMALL)


@pytest.mark.long
def test_true_text_is_learnt_from_where_it_is_known(
    trained: Path, corpus: Path, reported: Report, tmp_path: Path
) -> None:
    """Of prompts as `nld-data prompts` writes them, with trajectories of both kinds."""
    from nld_train.commands.data import main

    path = tmp_path / "prompts.jsonl"
    assert (
        main(["prompts", str(corpus / "corpus-validation"), "--out", str(path), "--count", "6", "--tokens", "16"]) == 0
    )
    options = ("--prompts", path, "--sampler", tmp_path / "sampler", "--thresholds", "0.5", *SMALL)
    found = reported(sampler.main, trained, *options)
    assert found["prompts"] == 4
    # 16 true tokens are 4 blocks of 4 and 2 of 8.
    assert found["trajectories"]["true_text"] == 4 * (4 + 2)
    assert found["trajectories"]["one_per_pass"] > 0


def test_a_sampler_is_trained_saved_and_evaluated(report: dict[str, Any], checkpoint: Path) -> None:
    assert 0 < report["auc"] <= 1
    assert 0 < report["auc_of_confidence"] <= 1
    assert (report["prompts"], report["stopping_prompts"], report["held_out_prompts"]) == (2, 2, 2)
    assert report["trained_block_lengths"] == [4, 8]
    assert report["trajectories"]["one_per_pass"] > report["trajectories"]["true_text"] == 0
    assert set(report["curves"]) == {"confidence", "sampler"}
    described = json.loads((checkpoint / "trained_sampler" / "sampler.json").read_text())
    assert (described["width"], described["auc"]) == (16, report["auc"])
    # With a threshold of 0 both commit everything at once.
    assert report["curves"]["sampler"][0] == report["curves"]["confidence"][0]


@pytest.mark.usefixtures("report")
def test_it_plugs_in_as_a_policy(
    decoded: Decoded,
    reported: Report,
    checkpoint: Path,
    trained_export: Path,
) -> None:
    """Beside the checkpoint's weights; and named, with the trained_export of the same weights."""
    options = ("--mode", "diffusion", "--policy", "sampler", "--block-length", 8, "--threshold", 0.5)
    found = decoded(checkpoint, *options)
    named = decoded(trained_export, *options, "--sampler", checkpoint / "trained_sampler")
    assert [record["token_ids"] for record in found] == [record["token_ids"] for record in named]
    points = reported(curve.main, checkpoint, "--block-length", 8, "--thresholds", "0.5")["curves"]["sampler"]
    assert points[0]["tokens_per_forward"] == pytest.approx(per_forward(found, "diffusion + sampler"))
    variants = reported(bound.main, checkpoint, "--block-lengths", "8", "--threshold", 0.5)["bounds"][0]["variants"]
    assert variants["diffusion, trained sampler"]["tokens_per_forward"] == points[0]["tokens_per_forward"]


@pytest.mark.usefixtures("report")
def test_it_evaluates(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many forwards for the same prompts as `nld-decode` takes with it, and not as many as without."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"prompt": document["question"]}) + "\n" for document in DOCUMENTS))
    options = [str(checkpoint), "--mode", "diffusion", "--block-length", "8", "--threshold", "0.4"]
    options += ["--max-new-tokens", "20", "--policy", "sampler"]
    capsys.readouterr()
    stops = [word for stop in STOPS for word in ("--stop", stop)]
    assert decode.main([*options, "--prompts", str(questions), "--json", *stops]) == 0
    found = [json.loads(line)["forwards"] for line in capsys.readouterr().out.splitlines()]
    forwards = {}
    for policy in ("sampler", "threshold"):
        output = tmp_path / f"{policy}.json"
        words = [*options, "--policy", policy, "--tasks", "local_text", "--include-path", str(TASKS)]
        assert evaluate.main([*words, "--output", str(output)]) == 0
        forwards[policy] = json.loads(output.read_text())["evaluation"]["generation"]["local_text"]["forwards"]
    assert forwards["sampler"] == sum(found) != forwards["threshold"]


def test_the_sampler_of_another_model_is_refused(
    report: dict[str, Any], checkpoint: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = sorted(path for path in newest_checkpoint(trained).parent.glob("step_*"))[0]
    assert older.name != newest_checkpoint(trained).name
    options = ["--prompt", "seven", "--mode", "diffusion", "--policy", "sampler", *FEW]
    message = refusal(capsys, decode.main, str(older), *options, "--sampler", str(checkpoint / "trained_sampler"))
    assert "trained for the weights of another model" in message
    for main in (curve.main, bound.main):
        words = ["--prompt", "seven", "--sampler", str(checkpoint / "trained_sampler"), *FEW]
        assert "trained for the weights of another model" in refusal(capsys, main, str(older), *words)


def test_a_sampler_needs_prompts_and_masks(
    trained: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*FEW, *SMALL, "--sampler", str(tmp_path / "sampler")]
    assert "at least 3 prompts" in refusal(capsys, sampler.main, str(trained), "--prompt", "seven", *words)
    short = ["--trained-block-lengths", "8,1"]
    message = refusal(capsys, sampler.main, str(trained), "--prompts", str(prompts), *words, *short)
    assert "--trained-block-lengths: 1 is not 2 or more" in message
    assert not (tmp_path / "sampler").exists()


def test_it_is_saved_in_a_directory_of_its_own(
    trained: Path, prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The directory is replaced, so it may contain nothing else; refused before anything is decoded."""
    (tmp_path / "thesis.txt").write_text("years of work")
    words = [trained, "--prompts", prompts, *FEW, *SMALL, "--sampler"]
    message = refusal(capsys, sampler.main, *words, tmp_path)
    assert "holds thesis.txt, and a sampler is saved in a directory of its own" in message
    assert "is no directory" in refusal(capsys, sampler.main, *words, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
