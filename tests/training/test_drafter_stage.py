"""A stage that trains a drafter adapter: what it does not change, what it writes, and how it is continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_stop_and_resume import assert_same_run
from tiny_runs import STEP_TOKENS, newest_checkpoint, records_of, saved_tensors
from training_runs import Train

from nld_train.model.adapter_files import DRAFTER_DIRECTORY, find_adapter, read_shape, read_tensors, tensor_names

STEPS = 4
RANK = 3
DRAFTER = (
    f"stages.drafter.tokens={STEPS * STEP_TOKENS}",
    f"stages.drafter.adapter.rank={RANK}",
    "stages.drafter.adapter.lora_alpha=6",
    "stages.drafter.adapter.block_size=5",
    "stages.drafter.schedule.warmup_fraction=0.5",
    "stages.drafter.schedule.decay_fraction=0.5",
)
THIRD = ("stages=[quickstart,drafter]", *DRAFTER)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in saved_tensors(checkpoint).items() if not name.startswith("optimizer")}


@pytest.fixture(scope="session")
def drafted(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages that was never stopped."""
    return train(tmp_path_factory.mktemp("drafted"), *THIRD, drawn=True)


@pytest.fixture(scope="session")
def alone(settings: tuple[str, ...], whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the drafter stage alone, from the newest checkpoint of another run."""
    from tiny_runs import train_here

    kept = [override for override in settings if not override.startswith("stages.")]
    directory = tmp_path_factory.mktemp("alone")
    return train_here(directory, *kept, "stages=drafter", *DRAFTER, f"init.checkpoint={whole}")


def test_the_model_keeps_every_bit(whole: Path, drafted: Path, alone: Path) -> None:
    before = weights_of(newest_checkpoint(whole))
    for run in (drafted, alone):
        after = weights_of(newest_checkpoint(run))
        assert {name for name in after if "adapter" not in name} == before.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name
        trained = {name: tensor for name, tensor in after.items() if "adapter" in name}
        assert len(trained) == 2
        assert all(tensor.any() for tensor in trained.values())


def test_records_have_the_loss_and_its_parts(drafted: Path) -> None:
    records = [record for record in records_of(drafted) if record["stage"] == "drafter"]
    assert [record["stage_step"] for record in records] == list(range(1, STEPS + 1))
    for record in records:
        parts = record["drafter"]
        assert record["ar_loss"] is None
        assert record["diffusion_loss"] is None
        assert parts["cross_entropy"] < record["loss"] <= parts["cross_entropy"] + max(parts["kl"], parts["tv"])
        assert 1 <= parts["accepted_length"] <= 5
        assert parts["blocks"] > 10
        assert record["grad_norm"] > 0
        assert "validation" not in record


def test_reports_and_summaries_know_the_stage(drafted: Path) -> None:
    summary = json.loads((drafted / "summary.json").read_text())
    assert summary["stages"]["drafter"]["last_ar_loss"] is None
    assert summary["stages"]["drafter"]["drafter"]["accepted_length"] >= 1
    assert (drafted / "report.png").stat().st_size > 1000


def test_the_adapter_lies_beside_the_weights_in_pefts_layout(drafted: Path) -> None:
    from nld_train.config.compose import compose_config

    checkpoint = newest_checkpoint(drafted)
    folder = find_adapter(checkpoint)
    assert folder == checkpoint / DRAFTER_DIRECTORY
    assert json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] == 6
    tensors, saved = read_tensors(folder), weights_of(checkpoint)
    for layer in range(2):
        for name, key in zip(tensor_names(layer), ("down", "up"), strict=True):
            expected = saved[f"decoder.layers.self_attention.adapter.{key}.weight"][layer]
            assert torch.equal(tensors[name], expected)
    model = compose_config(_shapes(drafted)).model
    assert read_shape(folder, model).rank == RANK
    # It is part of what a checkpoint promises to be whole.
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {
        f"{DRAFTER_DIRECTORY}/adapter_config.json",
        f"{DRAFTER_DIRECTORY}/adapter_model.safetensors",
    } <= listed.keys()


def _shapes(directory: Path) -> list[str]:
    model = json.loads((newest_checkpoint(directory) / "model.json").read_text())
    return [f"model.{name}={value}" for name, value in model.items() if isinstance(value, int)]


@pytest.mark.parametrize("stop", [9, pytest.param(8, marks=pytest.mark.long)])
def test_stopping_changes_nothing(train: Train, drafted: Path, tmp_path: Path, stop: int) -> None:
    """In the stage, and at its border."""
    train(tmp_path, *THIRD, f"run.max_steps={stop}")
    assert len(records_of(tmp_path)) == stop
    assert_same_run(train(tmp_path, *THIRD), drafted)
    files = [read_tensors(newest_checkpoint(run) / DRAFTER_DIRECTORY) for run in (tmp_path, drafted)]
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())


def test_overlapped_communication_does_not_outlive_its_stage(train: Train, drafted: Path, tmp_path: Path) -> None:
    """Megatron's hooks on the weights of the stages before know nothing of those that are frozen now."""
    overlap = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
    assert_same_run(train(tmp_path, *THIRD, *overlap), drafted)


def test_the_data_goes_on_and_other_seeds_draw_other_blocks(drafted: Path, alone: Path) -> None:
    """The stage alone begins at the first sample; after the others it goes on where they stopped."""
    found = [records_of(run)[-1]["drafter"]["blocks"] for run in (drafted, alone)]
    assert all(found)
    assert records_of(drafted)[-1]["loss"] != records_of(alone)[-1]["loss"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stages.drafter.adapter.rank=0",), "stages.drafter.adapter.rank=0: must be at least 1"),
        (("stages.drafter.adapter.block_size=1",), "stages.drafter.adapter.block_size=1: must be at least 2"),
        (("stages.drafter.adapter.top_k=0",), "stages.drafter.adapter.top_k=0: must be at least 1"),
        (("stages.drafter.adapter.temperature=0",), "stages.drafter.adapter.temperature=0.0: must be a number above 0"),
        (("stages.drafter.adapter.greedy_share=1.5",), "stages.drafter.adapter.greedy_share=1.5: must lie in [0, 1]"),
        (("stages.drafter.alpha=0.3",), "stages.drafter.alpha=0.3: must be 0"),
        (("+stages.drafter.ar_weight=0",), "stages.drafter.ar_weight=0.0: must be 1 with kind=drafter"),
        (("stages.drafter.averaging=masked",), "stages.drafter.averaging=masked: must be global"),
        (("run.stages=[ar,drafter,joint]",), "run.stages=[ar,drafter,joint]: must name 'drafter' last"),
    ],
)
def test_refusals(
    command: Callable[..., tuple[int, str]], tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    status, error = command(*THIRD, *overrides, f"run.dir={tmp_path / 'run'}")
    assert status == 2
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_rank_does_not_go_on(command: Callable[..., tuple[int, str]], train: Train, tmp_path: Path) -> None:
    train(tmp_path, *THIRD, "run.max_steps=9")
    status, error = command(*THIRD, "stages.drafter.adapter.rank=4", f"run.dir={tmp_path}")
    assert status == 2
    assert "stages.drafter.adapter: " in error
    assert error.count("\n") == 1


def test_a_damaged_adapter_damages_its_checkpoint(
    train: Train, drafted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(drafted, tmp_path / "run")
    tensors = newest_checkpoint(run) / DRAFTER_DIRECTORY / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    train(run, *THIRD)
    assert "adapter_model.safetensors has" in capfd.readouterr().err
    assert_same_run(run, drafted)
