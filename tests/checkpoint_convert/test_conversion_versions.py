"""Checkpoints that another version of this project wrote: read, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hugging_face_sources import TEXT, Source, larger, read_tensors, write_source
from test_conversion_round_trip import assert_same_bits, expected_tensors
from tiny_runs import newest_checkpoint
from trained_runs import AR_WEIGHT

from checkpoint_convert.cli import main
from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.importing import import_checkpoint
from nld_train.training.checkpoint.manifest import MANIFEST, write_manifest

EARLIER_CONFIG = Path(__file__).with_name("earlier_config.yaml")
PLAIN = Source("versions")
PLAIN_TEXT = larger(TEXT) | {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}


def rewrite(checkpoint: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON or YAML file of a checkpoint, and updates the manifest."""
    path = checkpoint / name
    load, dump = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    settings = load(path.read_text())
    change(settings)
    path.write_text(dump(settings))
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, {})


def test_an_optional_key_that_is_not_there_is_off(tmp_path: Path) -> None:
    meaning = write_source(tmp_path / "source", PLAIN, PLAIN_TEXT)
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    rewrite(tmp_path / "imported", "model.json", lambda model: model["rope_parameters"].pop("llama_4_scaling_beta"))
    assert main(["export", str(tmp_path / "imported"), str(tmp_path / "out"), "--format", "nld"]) == 0
    assert_same_bits(read_tensors(tmp_path / "out"), expected_tensors(meaning, PLAIN, "nld"))
    assert main(["verify", str(tmp_path / "source"), str(tmp_path / "imported")]) == 0


MODELS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown": (lambda model: model.update(later=1), "later: unknown key"),
    "unknown below": (lambda model: model["rope_parameters"].update(later=1), "rope_parameters.later: unknown key"),
    "missing": (lambda model: model.pop("head_dim"), "head_dim: missing"),
    "missing below": (lambda model: model["rope_parameters"].pop("rope_theta"), "rope_parameters.rope_theta: missing"),
    "another type": (lambda model: model.update(head_dim="20"), "head_dim='20': must be an integer"),
    "no table": (lambda model: model.update(rope_parameters=3), "rope_parameters=3: must be"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_may_mean_something_else_is_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, expected = MODELS[kind]
    write_source(tmp_path / "source", PLAIN, PLAIN_TEXT)
    import_checkpoint(tmp_path / "source", tmp_path / "imported", report=lambda _: None)
    rewrite(tmp_path / "imported", "model.json", change)
    assert main(["export", str(tmp_path / "imported"), str(tmp_path / "out"), "--format", "nld"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}/imported/model.json: {expected}")
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def make_other(settings: dict[str, Any]) -> None:
    """Without keys and a group that came later, with some unknown to this version."""
    for group, key in (("diffusion", "level_scope"), ("data", "documents"), ("model", "head_dim"), ("run", "seed")):
        del settings[group][key]
    del settings["evaluation"]
    settings["optimizer"]["later"] = 3
    settings["later"] = {"key": 1}


def test_a_run_of_another_version_is_exported(trained: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(newest_checkpoint(trained), checkpoint)
    rewrite(checkpoint, "config.yaml", make_other)
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--format", "nld"]) == 0
    assert main(["verify", str(trained), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| joint | 7,680 of 7,680 | 20 | 0.4 (AR loss x 0.8) | global |" in card


def test_settings_of_revision_333d147_are_exported_alike(
    trained: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    """`config.yaml` as that revision wrote it for the same run: every file of the export is the same."""
    checkpoint, export = tmp_path / "checkpoint", tmp_path / "nld"
    shutil.copytree(newest_checkpoint(trained), checkpoint)
    (checkpoint / "config.yaml").write_text(EARLIER_CONFIG.read_text().replace("{folder}", str(trained.parent)))
    # That revision had one weight of the AR loss; the run has another.
    rewrite(checkpoint, "config.yaml", lambda settings: settings["stages"]["joint"].update(ar_weight=AR_WEIGHT))
    export_checkpoint(checkpoint, export, "nld", report=lambda _: None)
    names = {path.relative_to(export) for path in export.rglob("*") if path.is_file()}
    assert names == {path.relative_to(exports["nld"]) for path in exports["nld"].rglob("*") if path.is_file()}
    for name in names:
        assert (export / name).read_bytes() == (exports["nld"] / name).read_bytes(), name


def test_settings_that_are_none_are_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(newest_checkpoint(trained), checkpoint)
    rewrite(checkpoint, "config.yaml", lambda settings: settings["batch"].update(global_size="many"))
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--format", "nld"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {checkpoint}/config.yaml: batch.global_size='many': must be an integer")
    assert message.count("\n") == 1
