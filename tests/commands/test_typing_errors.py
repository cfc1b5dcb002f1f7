"""A typing error is reported in a moment: paths and values are checked before torch is imported, in every command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import TESTS, TINY_MODEL, data_overrides, write_token_set

EVAL = "--mode ar --tasks local"
# Each with what its message names. `model` is a folder with a config.json, `file` a file, `folder` an empty folder.
CASES = {
    "nld-decode none --mode ar --prompt a": "none: does not exist",
    "nld-decode folder --mode ar --prompt a": "folder: holds no checkpoint",
    "nld-decode model --mode ar --prompts none": "--prompts none: cannot be read (No such file or directory)",
    "nld-decode model --mode ar --prompts folder": "--prompts folder: cannot be read (Is a directory)",
    "nld-decode model --mode ar --prompt a --tokenizer none": "none",
    "nld-decode model --mode linear --prompt a --adapter none": "none: holds no drafter adapter",
    "nld-decode model --mode ar --prompt a --output folder": "--output folder: is a folder",
    "nld-decode model --mode ar --prompt a --output none/a.json": "--output none/a.json: there is no folder",
    "nld-decode model --mode ar --prompt a --max-new-tokens 0": "max",
    "nld-decode model --mode diffusion --prompt a --block-length 0": "block",
    "nld-decode model --mode diffusion --prompt a --threshold 2": "threshold",
    "nld-decode model --mode ar --prompt a --batch-size 0": "--batch-size: 0",
    "nld-decode model --mode ar --prompt a --temperature -1": "temperature",
    "nld-decode model --mode ar --prompt a --seed -1": "seed",
    "nld-decode model --mode ar --prompt a --tensor 0": "--tensor: 0",
    "nld-decode model --prompt a": "--mode",
    "nld-curve none --prompt a": "none: does not exist",
    "nld-curve model --prompt a --thresholds 0.5,1.5": "threshold",
    "nld-curve model --prompt a --plot none/a.png": "--plot none/a.png: there is no folder",
    "nld-bound none --prompt a": "none: does not exist",
    "nld-bound model --prompt a --block-lengths 4,0": "block",
    "nld-acceptance none --prompts file": "none: does not exist",
    "nld-acceptance model --prompts none": "--prompts none: cannot be read (No such file or directory)",
    "nld-exact none --prompts file": "none: does not exist",
    "nld-exact model --prompts none": "--prompts none: cannot be read (No such file or directory)",
    "nld-sampler none --prompts file": "none: does not exist",
    "nld-sampler model --prompts file --output none/a": "--output none/a: there is no folder",
    f"nld-eval none {EVAL}": "none: does not exist",
    f"nld-eval model {EVAL} --include-path none": "--include-path: there is no folder none",
    f"nld-eval model {EVAL} --output folder": "--output folder: is a folder",
    f"nld-eval model {EVAL} --samples 1": "--samples: 1",
    f"nld-eval model {EVAL} --limit 0": "--limit: 0",
    "nld-convert import none new": "none: is not a directory",
    "nld-convert import folder new": "folder: has no config.json",
    "nld-convert export none new --format nld": "none: is neither",
    "nld-convert export model new --format nld": "model: is a Hugging Face directory already",
    "nld-convert verify model none": "none: is neither",
    "nld-convert verify model model --tokens none": "--tokens none",
    "nld-data prepare none --out new": "none",
    "nld-data inspect none": "none",
    "nld-data prompts none --out new": "none",
    "nld-data prompts none --output none/a.jsonl": "--output none/a.jsonl: there is no folder",
    "nld-status none": "none",
    "nld-plan gpus=none model=8b": "gpus",
    "nld-train run.dir=new": "data/stdlib/stdlib-train.bin does not exist",
    "nld-train run.dir=new 'data.train=[{prefix: none, weight: 1}]'": "none.bin does not exist",
    "nld-train run.dir=new 'batch.sequence_length=0'": "batch.sequence_length=0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typing")
    (folder / "folder").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "file").write_text('{"category": "a", "prompt": "b"}\n')
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    prefix = write_token_set(tmp_path_factory.mktemp("tokens") / "set", seed=1)
    return (*TINY_MODEL, *data_overrides(prefix))


def outcomes(folder: Path, lines: list[list[str]]) -> list[tuple[object, str]]:
    """What became of command lines in one process without torch."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "commands" / "without_torch.py")],
        input=json.dumps(lines),
        cwd=folder,
        env={"PYTHONPATH": f"{TESTS.parent}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: list[tuple[object, str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, tuple[object, str]]:
    lines = [shlex.split(line) for line in CASES]
    return dict(zip(CASES, outcomes(folder, lines), strict=True))


@pytest.mark.parametrize("line", CASES)
def test_a_typing_error_is_one_line_without_torch(found: dict[str, tuple[object, str]], line: str) -> None:
    status, errors = found[line]
    assert status == 2, (status, errors)
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert CASES[line] in errors


def test_nothing_is_left_behind(found: dict[str, tuple[object, str]], folder: Path) -> None:
    assert found
    assert sorted(path.name for path in folder.iterdir()) == ["file", "folder", "model"]


def test_initial_weights_and_a_folder_that_cannot_be_made(folder: Path, data: tuple[str, ...]) -> None:
    """A run whose data is there."""
    cases = {
        "init.checkpoint=none": "init.checkpoint: none is neither a checkpoint nor a run",
        "init.checkpoint=folder": "init.checkpoint: folder is neither a checkpoint nor a run",
        "run.dir=file": "run.dir: file cannot be written",
        "run.dir=file/below": "run.dir: file/below cannot be written",
        "data.tokenizer=none": "data.tokenizer=none: there is no such folder",
    }
    lines = [["nld-train", *data, "run.dir=new", case] for case in cases]
    for (status, errors), message in zip(outcomes(folder, lines), cases.values(), strict=True):
        assert status == 2, (status, errors)
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors
    assert not (folder / "new").exists()
