"""Runs on a prepared set with pictures: resumed to the last bit, also by data workers, refused without a tower."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_equality import assert_same_run
from tiny_runs import newest_checkpoint, saved_tensors, train_here

from nld_train.commands.data import main
from nld_train.errors import UserError

STEPS = 4
SETTINGS = (
    "experiment=vlm_quickstart",
    "run.stages=[vision]",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.head_dim=8",
    "model.vision.hidden_size=16",
    "model.vision.intermediate_size=32",
    "model.vision.num_hidden_layers=1",
    "model.vision.num_attention_heads=2",
    "batch.global_size=4",
    "batch.micro_size=2",
    "batch.sequence_length=128",
    f"stages.vision.tokens={STEPS * 4 * 128}",
    "stages.vision.noisy_length=96",
    "validation.every=0",
    "evaluation.every=0",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("pictures")
    assert main(["tasks", str(folder), "--pictures", "--conversations", "90", "--held-out", "1"]) == 0
    processor = '{"patch_size": 7, "spatial_merge_size": 2, "size": {"longest_edge": 56}}'
    words = ["--chat", "--pictures", "--picture-processor", processor, "--out", str(folder)]
    assert main(["prepare", str(folder / "train.jsonl"), *words]) == 0
    data = f"[{{prefix: {folder}/train, weight: 1}}]"
    return (*SETTINGS, f"data.train={data}", "data.validation=[]", f"data.tokenizer={folder}/tokenizer")


@pytest.mark.long
def test_it_is_resumed_to_the_last_bit(settings: tuple[str, ...], tmp_path: Path) -> None:
    whole = train_here(tmp_path / "whole", *settings)
    for stop in (1, 3, STEPS):
        stopped = train_here(tmp_path / "stopped", *settings, f"run.max_steps={stop}", "data.workers=1")
    assert_same_run(stopped, whole)
    before = saved_tensors(newest_checkpoint(train_here(tmp_path / "begun", *settings, "run.max_steps=1")))
    after = saved_tensors(newest_checkpoint(whole))
    changed = {name for name, tensor in after.items() if "vision" in name and not tensor.equal(before[name])}
    assert changed, "the tower is trained"


def test_a_text_model_is_refused(settings: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train has 90 pictures, and the model has no vision tower"):
        train_here(tmp_path / "text", *settings, "model.vision=null")
    with pytest.raises(UserError, match=r"model\.vision\.image_end_token_id=250: .* was prepared with 262"):
        train_here(tmp_path / "text", *settings, "model.vision.image_end_token_id=250")
