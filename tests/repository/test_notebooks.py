"""The notebooks run from their first cell to their last, as Jupyter runs them, on a run of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from documented_commands import ROOT
from shared import shared_folder
from tiny_runs import train_here

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _code(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_committed_without_output(notebook: Path) -> None:
    content = json.loads(notebook.read_text())
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    for code in _code(notebook):
        compile(code, str(notebook), "exec")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the quickstart's model, over byte tokens."""

    def make(folder: Path) -> None:
        from nld_train.commands.data import main

        text = " ".join(f"{number} times seven is {7 * number}." for number in range(3000))
        (folder / "text.txt").write_text(text)
        words = ["prepare", str(folder / "text.txt"), "--out", str(folder), "--name", "own", "--tokenizer", "bytes"]
        assert main([*words, "--workers", "1"]) == 0
        sets = f"[{{prefix: {folder}/own, weight: 1}}]"
        train_here(
            folder / "run",
            *(f"data.train={sets}", f"data.validation={sets}", f"data.tokenizer={folder}/tokenizer", "data.workers=0"),
            *("stages.ar.tokens=256", "stages.joint.tokens=512", "batch.global_size=4", "batch.micro_size=2"),
            *("batch.sequence_length=64", "validation.samples=4", "evaluation.every=0", "execution.device=cpu"),
            "logging.wandb.mode=disabled",
        )

    return shared_folder(tmp_path_factory, "run-for-notebooks", make)


def _executed(name: str, folder: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of every code cell, in a kernel that starts in another folder."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    for variable, value in {**variables, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def _text(outputs: Any) -> str:
    return "".join(str(found.get("text") or found.get("data", {}).get("text/plain", "")) for found in outputs)


@pytest.mark.long
def test_a_finished_run_is_opened(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _executed("finished_run", tmp_path, {"RUN": str(base / "run"), "PROMPT": "7 times"}, monkeypatch)
    assert "3 steps, 768 tokens, stages ar, joint" in _text(found[0])
    table = _text(found[-1])
    assert all(mode in table for mode in ("ar", "diffusion", "linear", "quadratic"))


@pytest.mark.long
def test_the_quickstart_is_fine_tuned(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"BASE": str(base / "run"), "TOKENIZER": str(base / "tokenizer"), "TOKENS": "1024"}
    found = _executed("fine_tune_quickstart", tmp_path, variables, monkeypatch)
    assert (tmp_path / "runs/capitals/report.png").is_file()
    assert "quadratic" in _text(found[-1])
