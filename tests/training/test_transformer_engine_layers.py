"""Checkpoints of layers that keep an extra state, as Transformer Engine's do: read by both kinds of layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from forked import Finished, run_forked
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint, records_of, saved_tensors
from torch.distributed.checkpoint import BytesStorageMetadata, FileSystemReader
from training_runs import Train
from transformer_engine_runs import STOPS

from checkpoint_convert.cli import main as convert
from nld_train.config.compose import compose_config
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import DecodeOptions
from nld_train.decoding.open_megatron import open_megatron

pytestmark = pytest.mark.long

# Sums of the layers' gradients in another order, and Adam's divisions of them by their own size.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def runs(settings: tuple[str, ...], train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    train(folder / "from_local", "run.max_steps=5")
    request = json.dumps([str(folder), list(settings)])
    (folder / "log").write_text(run_trained(request).output)
    return folder


def run_trained(request: str) -> Finished:
    done = run_forked(["call", "transformer_engine_runs", "train_all", request], timeout=240)
    assert done.status == 0, done.output
    return done


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records_of(run)]


def scaling_entries(run: Path) -> list[str]:
    entries = FileSystemReader(newest_checkpoint(run)).read_metadata().state_dict_metadata
    return [name for name, entry in entries.items() if isinstance(entry, BytesStorageMetadata) and "_extra" in name]


def test_they_train_and_continue_what_the_local_layers_wrote(runs: Path, whole: Path) -> None:
    for name in ("bf16", "from_local"):
        torch.testing.assert_close(losses(runs / name), losses(whole), **CLOSE)
        ours, theirs = (saved_tensors(newest_checkpoint(run)) for run in (runs / name, whole))
        assert ours.keys() == theirs.keys()
        assert scaling_entries(runs / name) == []


def test_a_run_starts_from_their_weights(runs: Path) -> None:
    start, end = losses(runs / "started")[0], losses(runs / "bf16")[0]
    assert start < end


def test_a_lora_beside_them_is_continued(runs: Path, train: Train, tmp_path: Path) -> None:
    local = train(tmp_path, "stages.joint.lora={rank: 2, lora_alpha: 4}")
    torch.testing.assert_close(losses(runs / "lora"), losses(local), **CLOSE)


@pytest.mark.parametrize("step", STOPS)
def test_delayed_scaling_is_resumed_to_the_last_bit(runs: Path, step: int) -> None:
    # Two layers with four products each, and the final norm, whose entry is empty.
    assert len(scaling_entries(runs / "fp8")) == 2 * 4 + 1
    assert losses(runs / "fp8") != losses(runs / "bf16")
    assert_same_run(runs / f"fp8_{step}", runs / "fp8")


def test_validation_does_not_change_the_scales(runs: Path) -> None:
    validated = [record["step"] for record in records_of(runs / "fp8_validated") if "validation" in record]
    assert validated != [record["step"] for record in records_of(runs / "fp8") if "validation" in record]
    assert losses(runs / "fp8_validated") == losses(runs / "fp8")


def test_scales_that_a_checkpoint_lacks_are_reported(runs: Path) -> None:
    said = [line for line in (runs / "log").read_text().splitlines() if "FP8 scaling state" in line]
    assert len(said) == 1
    assert str(runs / "without_scales" / "checkpoints" / "step_00000004") in said[0]
    assert len(losses(runs / "without_scales")) == 8


def test_local_layers_read_what_they_wrote(runs: Path, settings: tuple[str, ...], train: Train, tmp_path: Path) -> None:
    starts = ("run.max_steps=1", "run.stages=[joint]")
    for name in ("bf16", "fp8"):
        train(tmp_path / name, f"init.checkpoint={runs / name}", *starts)
        assert convert(["export", str(runs / name), str(tmp_path / f"{name}-export"), "--format", "nld"]) == 0
        assert convert(["verify", str(runs / name), str(tmp_path / f"{name}-export")]) == 0
    with open_megatron(newest_checkpoint(runs / "bf16"), compose_config(list(settings)), None) as engine:
        result = decode(engine, [[5, 6, 7]], "ar", DecodeOptions(max_new_tokens=6, block_length=5))
    assert result.token_ids == json.loads((runs / "decoded.json").read_text())
