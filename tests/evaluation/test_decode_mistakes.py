"""`nld-decode`: one line for every mistake in a command line, a file of prompts or a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_helpers import SHORT, refusal
from safetensors.torch import load_file, save_file
from tiny_runs import newest_checkpoint

from nld_train.commands.decode import main

FITS = ["--prompt", "seven", "--max-new-tokens", "4"]
BAD = [
    (["--prompt", "seven", "--mode", "linear", "--block-length", "0"], "block_length: 0 is not 1 or more"),
    (["--prompt", "seven", "--mode", "diffusion", "--threshold", "1.5"], "threshold: 1.5 is not in [0, 1]"),
    (["--prompt", "seven", "--mode", "ar", "--threshold", "-1"], "threshold: -1.0 is not in [0, 1]"),
    (["--prompt", "seven", "--mode", "ar", "--temperature", "-1"], "temperature"),
    (["--prompt", "seven", "--mode", "ar", "--temperature", "1", "--top-p", "0"], "top_p"),
    (["--prompt", "seven", "--mode", "ar", "--max-new-tokens", "0"], "max_new_tokens"),
    (["--prompt", "seven", "--mode", "ar", "--batch-size", "0"], "--batch-size"),
    (["--prompt", "", "--mode", "ar"], "--prompt: is empty"),
    (["--prompt", "x" * 96, "--mode", "ar"], "prompt 0 has 96 tokens, which leaves no room in the context of 96"),
    (["--prompt", "one <mask> two", "--mode", "ar"], "prompt 0 contains the mask token (id 3)"),
    (["--prompt", "seven", "--mode", "linear", "--adapter"], "this model has no drafter adapter"),
    (["--prompt", "seven", "--mode", "ar", "--adapter"], "only linear does"),
    (["--prompt", "seven", "--mode", "ar", "--policy", "sampler"], "--policy: mode 'ar' has no denoising passes"),
    (["--prompt", "seven", "--mode", "linear", "--steps", "4"], "--steps: mode 'linear' has no denoising passes"),
    (["--prompt", "seven", "--mode", "diffusion", "--steps", "4"], "--steps: the policy 'threshold' does not read it"),
    (["--prompt", "seven", "--mode", "diffusion", "--sampler", "x"], "--sampler: the policy 'threshold' does not"),
    (["--prompt", "seven", "--mode", "linear", "--ar-weight", "0.5"], "--ar-weight: mode 'linear' does not mix"),
    (["--prompt", "seven", "--mode", "quadratic", "--ar-weight", "1.5"], "ar_weight: 1.5 is not in [0, 1]"),
    (["--prompt", "seven", "--mode", "ar", "--stop", "a", "--stop", ""], "--stop: an empty text"),
    (["--prompt", "seven"], "one of the arguments --mode --compare is required"),
    (["--prompt", "seven", "--mode", "ar", "--compare"], "--compare: not allowed with argument --mode"),
    (["--prompt", "seven", "--mode", "ar", "--threshold", "0.9"], "--threshold: mode 'ar' has no denoising passes"),
    (["--prompt", "seven", "--mode", "quadratic", "--threshold", "0.5"], "--threshold: mode 'quadratic' has no"),
    (["--prompt", "seven", "--mode", "ar", "--policy", "threshold"], "--policy: mode 'ar' has no denoising passes"),
    (["--prompt", "seven", "--mode", "ar", "--block-length", "8"], "--block-length: mode 'ar' has no blocks"),
    (["--prompt", "seven", "--mode", "ar", "--ar-weight", "1"], "--ar-weight: mode 'ar' does not mix"),
    (
        ["--prompt", "seven", "--mode", "diffusion", "--policy", "number", "--threshold", "0.9"],
        "--threshold: the policy 'number' does not read it",
    ),
    (["--prompt", "seven", "--mode", "ar", "--top-k", "5"], "--top-k: without a temperature nothing is sampled"),
    (["--prompt", "seven", "--compare", "--top-p", "0.9"], "--top-p: without a temperature nothing is sampled"),
    (["--prompt", "seven", "--mode", "linear", "--seed", "3"], "--seed: without a temperature nothing is sampled"),
    (["--prompt", "seven", "--mode", "linear", "--max-new-tokens", "92"], "92 do not fit into the context of 96"),
    (["--prompt", "seven", "--compare", "--max-new-tokens", "5000"], "at most 91 do"),
    ([*FITS, "--mode", "linear", "--block-length", "1000000000"], "block_length: 1000000000 is longer"),
    ([*FITS, "--mode", "quadratic", "--block-length", "64"], "computes 4160 positions in a pass"),
    (["--prompts", "nowhere.txt", "--mode", "ar"], "--prompts nowhere.txt: cannot be read"),
    (["--prompt", "seven", "--mode", "ar", "--tokenizer", "nowhere"], "no tokenizer directory nowhere"),
]


@pytest.mark.parametrize("kind", ["trained", "trained_export"])
@pytest.mark.parametrize(("words", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_mistakes_are_one_line(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str, words: list[str], message: str
) -> None:
    path = request.getfixturevalue(kind)
    capsys.readouterr()
    assert refusal(capsys, main, str(path), *words).find(message) >= 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [("", "holds no prompt"), ("seven\n\neight\n", ":2: the prompt is empty")],
)
def test_prompts_without_text_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, message: str
) -> None:
    (tmp_path / "prompts.txt").write_text(lines)
    assert message in refusal(capsys, main, str(trained), "--mode", "ar", "--prompts", str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "seven", "id": ' + b"9" * 5000 + b"}", ":2: has an integer of more than 4300 digits"),
        (b'{"prompt":' + b"[" * 100_000, ":2: is nested too deeply"),
        (b'["seven"]', ":2: holds a list, not an object with a text under 'prompt'"),
        (b'{"text": "seven"}', ":2: no key 'prompt' (text): each line must be an object with a text under 'prompt'"),
    ],
    ids=["digits", "nested", "list", "other key"],
)
def test_a_line_of_prompts_that_cannot_be_read_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes, message: str
) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b'{"prompt": "one"}\n' + line + b"\n")
    said = refusal(capsys, main, str(trained), "--mode", "ar", "--prompts", str(tmp_path / "prompts.jsonl"))
    assert f"--prompts {tmp_path}/prompts.jsonl{message}" in said


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--mode", "ar", "--prompt", "seven")
    assert "holds no checkpoint" in refusal(capsys, main, str(tmp_path), *words)
    assert "does not exist" in refusal(capsys, main, str(tmp_path / "nowhere"), *words)
    (tmp_path / "notes.txt").write_text("no model")
    assert "is no directory" in refusal(capsys, main, str(tmp_path / "notes.txt"), *words)
    (tmp_path / "config.json").write_text('{"model_type": "ministral3"}')
    assert "nld-convert import" in refusal(capsys, main, str(tmp_path), *words)


def test_a_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(newest_checkpoint(trained), tmp_path / "step")
    weights = max(copy.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    message = refusal(capsys, main, str(copy), "--mode", "ar", "--prompt", "seven")
    assert f"is damaged: {weights.name} does not have the content" in message


@pytest.mark.parametrize("token", [1.5, 260, -1, True, "2", [2, 9999], {}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_stop_token_that_is_no_id_is_refused(
    trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, token: Any
) -> None:
    copy = shutil.copytree(trained_export, tmp_path / "copy")
    values = json.loads((copy / name).read_text()) | {"eos_token_id": token}
    (copy / name).write_text(json.dumps(values))
    message = refusal(capsys, main, str(copy), "--mode", "ar", "--prompt", "seven")
    assert f"{name}: eos_token_id must be an id of the vocabulary of 260" in message


def test_an_export_with_nan_is_refused(
    trained_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(trained_export, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    message = refusal(capsys, main, str(copy), "--mode", "ar", "--prompt", "seven", *SHORT)
    assert f"tensor {name} contains NaN or infinity" in message
