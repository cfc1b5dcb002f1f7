"""Runs that start from converted checkpoints, and the record of their origin in their own exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hugging_face_sources import change_tensors, read_tensors
from tiny_runs import newest_checkpoint, saved_tensors
from trained_runs import train_on

from checkpoint_convert.cli import main
from checkpoint_convert.importing import import_checkpoint
from nld_train.data.tokenizer import save_tokenizer, train_bpe
from nld_train.data.tokenizer_files import copy_tokenizer
from nld_train.errors import UserError


def test_a_run_starts_from_every_kind_alike(trained: Path, exports: dict[str, Path], tmp_path: Path) -> None:
    """A run, both formats of its export, and an import of one: the same weights after a step, bit for bit."""
    import_checkpoint(exports["nld"], tmp_path / "imported", report=lambda _: None)
    starts = {"run": trained, **exports, "imported": tmp_path / "imported"}
    found = {}
    for name, checkpoint in starts.items():
        directory = train_on(trained.parent, tmp_path / name, checkpoint)
        found[name] = saved_tensors(newest_checkpoint(directory))
        assert "output_layer.weight" in found[name]
        for key, value in found["run"].items():
            assert torch.equal(found[name][key], value), (name, key)
    before = saved_tensors(newest_checkpoint(trained))["output_layer.weight"]
    assert not torch.equal(found["run"]["output_layer.weight"], before)


def test_stop_tokens_come_from_the_first_model(
    trained: Path, exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a chain of runs; where a checkpoint of the chain is gone, the export prints a note."""
    first = tmp_path / "first"
    shutil.copytree(exports["nld"], first)
    (first / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    once = train_on(trained.parent, tmp_path / "once", first)
    twice = train_on(trained.parent, tmp_path / "twice", once)
    capsys.readouterr()
    assert main(["export", str(twice), str(tmp_path / "out"), "--format", "nld"]) == 0
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [1, 3]
    assert "is not there" not in capsys.readouterr().out
    shutil.rmtree(first)
    assert main(["export", str(twice), str(tmp_path / "again"), "--format", "nld"]) == 0
    assert f"{first}, from which the weights came, no longer exists" in capsys.readouterr().out


def test_weights_of_another_tokenizer_are_no_start(trained: Path, exports: dict[str, Path], tmp_path: Path) -> None:
    """The data are bytes; the weights of an export with another tokenizer of as many ids mean other tokens."""
    other = shutil.copytree(exports["nld"], tmp_path / "other")
    for path in other.glob("tokenizer*"):
        path.unlink()
    save_tokenizer(train_bpe(["other"], 260), str(tmp_path / "bpe"))
    copy_tokenizer(tmp_path / "bpe", other)
    with pytest.raises(UserError, match=r"data.tokenizer .*is another tokenizer"):
        train_on(trained.parent, tmp_path / "run", other)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_with_nan_are_no_start(trained: Path, exports: dict[str, Path], tmp_path: Path) -> None:
    poisoned = shutil.copytree(exports["ministral3"], tmp_path / "poisoned")
    name = "model.layers.1.mlp.down_proj.weight"
    change_tensors(poisoned, {name: torch.full_like(read_tensors(poisoned)[name], torch.nan)})
    with pytest.raises(UserError, match=r"decoder\.layers\.1\.mlp\.linear_fc2\.weight contains NaN or infinity"):
        train_on(trained.parent, tmp_path / "run", poisoned)
