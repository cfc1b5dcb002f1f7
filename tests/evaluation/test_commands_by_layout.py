"""Decoding commands with several processes: the same output, printed once, and one line for a wrong layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_helpers import FEW, refusal
from forked import run_ranks
from test_harness import same, words

from nld_train.commands import decode, eval

WORKER = Path(__file__).with_name("commands_worker.py")
COMPARE = ("--compare", "--block-length", "4", "--threshold", "0.3", *FEW, "--json")
SAMPLED = ("--mode", "quadratic", "--ar-weight", "0.7", "--temperature", "0.8", "--block-length", "4", *FEW, "--json")
LAYOUTS = {
    "tensor": ("--tensor", "2"),
    "pipeline": ("--pipeline", "2"),
    "tensor and pipeline": ("--tensor", "2", "--pipeline", "2"),
}


def records_of(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found
    assert all(record.pop("seconds") > 0 for record in found)
    return found


def run_group(processes: int, commands: list[dict[str, Any]], folder: Path) -> str:
    described = folder / f"commands{processes}.json"
    described.write_text(json.dumps(commands))
    done = run_ranks(processes, [str(WORKER), str(described)], timeout=400)
    assert done.status == 0, done.output[-6000:]
    return done.output


def decoding(trained: Path, prompts: Path, layout: str, variant: tuple[str, ...], output: Path) -> dict[str, Any]:
    options = [str(trained), "--prompts", str(prompts), *variant, *LAYOUTS.get(layout, ())]
    return {"module": "nld_train.commands.decode", "words": options, "output": str(output)}


def evaluation(trained: Path, layout: str, output: Path) -> dict[str, Any]:
    options = words(trained, "diffusion", output, "--policy", "number", "--number", "2", *LAYOUTS.get(layout, ()))
    return {"module": "nld_train.commands.eval", "words": options, "output": str(output) + ".printed"}


@pytest.fixture(scope="module")
def alone(trained: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of one process."""
    folder = tmp_path_factory.mktemp("alone")
    commands = [
        decoding(trained, prompts, "one", COMPARE, folder / "compared"),
        decoding(trained, prompts, "one", SAMPLED, folder / "sampled"),
        evaluation(trained, "one", folder / "evaluated"),
    ]
    run_group(1, commands, folder)
    return folder


@pytest.fixture(scope="module")
def by_two(trained: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    commands = [
        *(decoding(trained, prompts, layout, COMPARE, folder / layout) for layout in ("tensor", "pipeline")),
        decoding(trained, prompts, "tensor", SAMPLED, folder / "sampled"),
        evaluation(trained, "tensor", folder / "evaluated"),
    ]
    run_group(2, commands, folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("layout", ["tensor", "pipeline"])
def test_two_processes_that_share_a_model_decode_as_one(alone: Path, by_two: Path, layout: str) -> None:
    assert records_of(by_two / layout) == records_of(alone / "compared")


@pytest.mark.long
def test_they_sample_as_one(alone: Path, by_two: Path) -> None:
    assert records_of(by_two / "sampled") == records_of(alone / "sampled")


@pytest.mark.long
def test_they_evaluate_as_one(alone: Path, by_two: Path) -> None:
    one, two = (json.loads((folder / "evaluated").read_text()) for folder in (alone, by_two))
    assert one["evaluation"]["policy"] == two["evaluation"]["policy"] == "number"
    same(one, two)
    assert (by_two / "evaluated.printed").read_text().count("|local_choice") == 1


@pytest.mark.long
def test_four_processes_are_two_models_or_one(trained: Path, prompts: Path, alone: Path, tmp_path: Path) -> None:
    """One model split in both directions; and two replicas of two processes each, which divide the requests."""
    commands = [
        decoding(trained, prompts, "tensor and pipeline", COMPARE, tmp_path / "compared"),
        evaluation(trained, "pipeline", tmp_path / "evaluated"),
    ]
    run_group(4, commands, tmp_path)
    assert records_of(tmp_path / "compared") == records_of(alone / "compared")
    same(*(json.loads((folder / "evaluated").read_text()) for folder in (alone, tmp_path)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tensor", "2"), "--tensor 2 x --pipeline 1: need 2 processes, and there are 1"),
        (("--pipeline", "0"), "--pipeline: 0 is not 1 or more"),
    ],
)
def test_layouts_of_missing_processes(
    trained: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    options = (str(trained), "--prompt", "seven", "--mode", "ar", *more)
    assert message in refusal(capsys, decode.main, *options)


@pytest.mark.parametrize(
    ("kind", "size", "layout", "message"),
    [
        ("trained", 3, ("--tensor", "3"), "--tensor=3: "),
        ("trained", 3, ("--pipeline", "3"), "--pipeline=3: "),
        ("trained", 4, ("--tensor", "2"), "need 2 processes, and there are 4"),
        ("trained_export", 2, ("--tensor", "2"), "one process reads an export"),
        ("trained", 2, ("--tensor", "2", "--mode", "diffusion", "--policy", "sampler"), "reads the whole embedding"),
    ],
)
def test_layouts_that_a_model_cannot_have(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    size: int,
    layout: tuple[str, ...],
    message: str,
) -> None:
    """Found before the processes communicate, so that one alone shows it."""
    path = request.getfixturevalue(kind)
    monkeypatch.setenv("WORLD_SIZE", str(size))
    assert message in refusal(capsys, decode.main, path, "--prompt", "seven", "--mode", "ar", *layout)


def test_an_evaluation_requires_whole_replicas(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert eval.main([*words(trained, "ar", tmp_path / "results.json"), "--tensor", "2"]) == 2
    assert "need a multiple of 2 processes, and there are 3" in capfd.readouterr().err.splitlines()[-1]
