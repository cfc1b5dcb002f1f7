"""Fixtures of several files: an import, a trained run, and its exports."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared import shared_folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of both stages over prepared text."""
    from trained_runs import train

    return shared_folder(tmp_path_factory, "trained-on-text", train) / "run"


@pytest.fixture(scope="session")
def exports(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run in both formats."""
    from checkpoint_convert.exporting import export_checkpoint

    def export(folder: Path) -> None:
        for output_format in ("nld", "ministral3"):
            export_checkpoint(trained, folder / output_format, output_format, report=lambda _: None)

    folder = shared_folder(tmp_path_factory, "exports-of-text", export)
    return {output_format: folder / output_format for output_format in ("nld", "ministral3")}


@pytest.fixture(scope="session")
def instructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base model, the conversations and the `run`."""
    import instruct_runs

    return shared_folder(tmp_path_factory, "instructed", instruct_runs.train)


@pytest.fixture(scope="session")
def instruct(instructed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run in both formats."""
    from checkpoint_convert.exporting import export_checkpoint

    def export(folder: Path) -> None:
        for output_format in ("nld", "ministral3"):
            export_checkpoint(instructed / "run", folder / output_format, output_format, report=lambda _: None)

    folder = shared_folder(tmp_path_factory, "instruct-exports", export)
    return {output_format: folder / output_format for output_format in ("nld", "ministral3")}


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """An import of the directory `source`, which is next to it."""
    from hugging_face_sources import named, write_source

    from checkpoint_convert.importing import import_checkpoint

    write_source(tmp_path / "source", named("untied"))
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    return tmp_path / "imported"
