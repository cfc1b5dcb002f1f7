"""A corpus of bytes, a run over it that decodes while it trains, and commands that read its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_helpers import FEW, PROMPTS, SHORT, THREE, Decoded, Main, Report, short
from runs_that_decode import EVALUATION, SHAPES, STEPS, WORDS, train
from shared import shared_folder

from nld_train.commands import acceptance


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`corpus-train`, `corpus-validation` and `tokenizer`, as `nld-data prepare` writes them."""
    return shared_folder(tmp_path_factory, "corpus-of-words", prepare)


def prepare(folder: Path) -> None:
    from nld_train.commands.data import main

    lines = (" ".join(WORDS[(number * step) % len(WORDS)] for step in range(3, 12)) for number in range(120))
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    words = ["prepare", str(folder / "corpus.txt"), "--out", str(folder), "--documents-per", "line"]
    assert main([*words, "--validation", "0.3", "--workers", "1"]) == 0


@pytest.fixture(scope="session")
def settings(corpus: Path) -> tuple[str, ...]:
    """Overrides of a run of 2 AR and 5 joint steps that decodes three times."""
    return (
        *SHAPES,
        *STEPS,
        *EVALUATION,
        f"data.train=[{{prefix: {corpus}/corpus-train, weight: 1}}]",
        f"data.validation=[{{prefix: {corpus}/corpus-validation, weight: 1}}]",
        f"data.tokenizer={corpus}/tokenizer",
        "data.workers=0",
        "validation.every=0",
        "logging.wandb.mode=disabled",
        "execution.device=cpu",
        "execution.timeout_minutes=5",
    )


@pytest.fixture(scope="session")
def trained(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(
        tmp_path_factory, "run-that-decodes", lambda folder: train(*settings, f"run.dir={folder}", hooked=True)
    )


@pytest.fixture(scope="session")
def trained_export(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of `trained`."""
    from checkpoint_convert.exporting import export_checkpoint

    exports = shared_folder(
        tmp_path_factory, "export-that-decodes", lambda folder: export_checkpoint(trained, folder / "export", "nld")
    )
    return exports / "export"


@pytest.fixture(scope="session")
def imported(trained_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import of the export of `trained`."""
    from checkpoint_convert.importing import import_checkpoint

    imports = shared_folder(
        tmp_path_factory,
        "import-that-decodes",
        lambda folder: import_checkpoint(trained_export, folder / "imported"),
    )
    return imports / "imported"


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


@pytest.fixture(scope="session")
def reported(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Runs a command that reports, with --output and, where it draws, --plot; returns its figures."""
    folder = tmp_path_factory.mktemp("reports")

    def run(main: Main, *words: object) -> dict[str, Any]:
        given, figures, drawing = list(map(str, words)), folder / "figures.json", folder / "drawing.png"
        if "--prompts" not in given:
            given += ["--prompts", str(prompts)]
        if main is not acceptance.main:
            given += ["--plot", str(drawing)]
        assert main([*given, *FEW, "--output", str(figures)]) == 0
        if "--plot" in given:
            assert drawing.read_bytes().startswith(b"\x89PNG")
        found: dict[str, Any] = json.loads(figures.read_text())
        return found

    return run


@pytest.fixture
def decoded(prompts: Path, capsys: pytest.CaptureFixture[str]) -> Decoded:
    """Objects of `nld-decode --json`."""
    from nld_train.commands.decode import main

    def run(*words: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main([*map(str, words), "--prompts", str(prompts), *FEW, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`THREE` prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in THREE))
    return path


@pytest.fixture
def records(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line of `nld-decode` with --json and short settings; returns its objects without the time."""
    from nld_train.commands.decode import main

    def run(*words: object) -> list[dict[str, Any]]:
        assert main(short(*SHORT, *words, "--json")) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(record.pop("seconds") > 0 for record in found)
        return found

    return run
