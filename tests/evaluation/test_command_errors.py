"""One line for every error in the arguments of the reporting commands, before any weight is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_helpers import FEW, Main, refusal

from nld_train.commands import acceptance, bound, curve, decode, sampler


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (decode.main, ["--mode", "diffusion", "--policy", "sampler"], "holds no trained sampler"),
        (decode.main, ["--mode", "diffusion", "--policy", "number", "--number", "0"], "0 positions per pass"),
        (decode.main, ["--mode", "diffusion", "--policy", "steps", "--steps", "0"], "0 denoising passes"),
        (decode.main, ["--mode", "diffusion", "--policy", "entropy", "--entropy", "-1"], "entropy of -1.0"),
        (curve.main, ["--thresholds", "0,1.5"], "threshold: 1.5 is not in [0, 1]"),
        (curve.main, ["--block-length", "0"], "block_length: 0 is not 1 or more"),
        (curve.main, ["--sampler", "nowhere", *FEW], "nowhere: holds no trained sampler"),
        (curve.main, ["--max-new-tokens", "96"], "96 do not fit into the context of 96"),
        (curve.main, ["--output", "."], "--output .: is a folder; name a file"),
        (curve.main, ["--output", "/dev/null"], "--output /dev/null: is no regular file"),
        (curve.main, ["--output", "x" * 253], "cannot be written (File name too long)"),
        (curve.main, ["--output", "same", "--plot", "same"], "--output, --plot: each needs a file of its own"),
        (bound.main, ["--max-new-tokens", "96"], "96 do not fit into the context of 96"),
        (sampler.main, ["--sampler", "/dev/null/sampler", *FEW], "/dev/null is no directory that can be written to"),
        (curve.main, ["--batch-size", "0"], "--batch-size: 0 is not 1 or more"),
        (curve.main, ["--plot", "no/where/curve.png"], "there is no folder"),
        (bound.main, ["--threshold", "-1"], "threshold: -1.0 is not in [0, 1]"),
        (bound.main, ["--block-lengths", "4,0"], "block_length: 0 is not 1 or more"),
        (
            bound.main,
            ["--block-lengths", "8,1000000000", "--max-new-tokens", "8"],
            "block_length: 1000000000 is longer than the context of 96",
        ),
        (
            curve.main,
            ["--block-length", "97", "--max-new-tokens", "8"],
            "block_length: 97 is longer than the context of 96",
        ),
        (bound.main, ["--budget", "0"], "--budget: 0 is not 1 or more"),
        (sampler.main, ["--width", "0"], "width: 0 is not 1 or more"),
        (sampler.main, ["--steps", "0"], "steps: 0 is not 1 or more"),
        (sampler.main, ["--held-out", "1", *FEW], "--held-out: 1.0 is not between 0 and 1"),
    ],
)
def test_mistakes_are_one_line(
    trained: Path, prompts: Path, capsys: pytest.CaptureFixture[str], main: Main, words: list[str], message: str
) -> None:
    assert message in refusal(capsys, main, str(trained), "--prompts", str(prompts), *words)


@pytest.mark.parametrize("main", [curve.main, bound.main, sampler.main])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--prompt: is empty"),
        ("x" * 96, "prompt 0 has 96 tokens, which leaves no room in the context of 96"),
        ("one <mask> two", "prompt 0 contains the mask token (id 3)"),
    ],
)
def test_prompts_that_cannot_be_continued(
    trained: Path, capsys: pytest.CaptureFixture[str], main: Main, text: str, message: str
) -> None:
    assert message in refusal(capsys, main, str(trained), "--prompt", text)


@pytest.mark.parametrize("main", [curve.main, bound.main, sampler.main, acceptance.main])
def test_without_a_tokenizer(
    trained_export: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Main
) -> None:
    copy = shutil.copytree(trained_export, tmp_path / "bare")
    for file in [*copy.rglob("tokenizer*.json"), *copy.rglob("special_tokens_map.json")]:
        file.unlink()
    questions = prompts.with_name("one_question.jsonl")
    questions.write_text('{"category": "a", "prompt": "seven"}\n')
    given = questions if main is acceptance.main else prompts
    assert "no tokenizer was found" in refusal(capsys, main, str(copy), "--prompts", str(given))
