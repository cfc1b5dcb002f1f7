"""A stage that is trained on conversations: after others in one run, stopped anywhere, with data of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from chat_sets import random_conversations, write_chat_manifest, write_chat_set
from run_equality import assert_same_run
from shared import shared_folder
from tiny_runs import STEP_TOKENS, composed, records_of, train_here
from training_runs import AR_STEPS, JOINT_STEPS, Train

from nld_train.config.plan import stage_plans
from nld_train.data import sample_sets
from nld_train.data.order import stage_orders
from nld_train.data.sample_sets import resolve_noisy_lengths
from nld_train.errors import UserError
from nld_train.training.checkpoint.noisy_lengths import noisy_lengths_of_run

STEPS = 5
BEFORE = AR_STEPS + JOINT_STEPS
# Losses on held-out conversations at every step.
HELD_OUT = ("validation.every=1", "validation.samples=8")


def write_conversations(folder: Path) -> None:
    """Training and held-out conversations with the ids of the tiny model."""
    for name, seed in (("train", 3), ("held-out", 4)):
        conversations = random_conversations(seed, 60, longest=5, largest_id=66)
        prefix = write_chat_set(folder / name, conversations)
        write_chat_manifest(prefix, conversations, vocabulary_size=67)


@pytest.fixture(scope="session")
def sft(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides of a fine-tuning stage after the quickstart's two, whose data have an end within it."""
    folder = shared_folder(tmp_path_factory, "conversations", write_conversations)
    return (
        "stages=[quickstart,sft]",
        f"stages.sft.train=[{{prefix: {folder}/train, weight: 1}}]",
        f"stages.sft.validation=[{{prefix: {folder}/held-out, weight: 1}}]",
        f"stages.sft.tokens={STEPS * STEP_TOKENS}",
        "stages.sft.noisy_length=28",
        "stages.sft.schedule.learning_rate=2e-3",
        "stages.sft.schedule.warmup_fraction=0.5",
        "stages.sft.schedule.decay_fraction=0.5",
    )


@pytest.fixture(scope="session")
def tuned(train: Train, sft: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three stages that was never stopped."""
    return train(tmp_path_factory.mktemp("tuned"), *sft)


def test_its_losses_are_of_answers(tuned: Path) -> None:
    records = [record for record in records_of(tuned) if record["stage"] == "sft"]
    assert len(records) == STEPS
    for record in records:
        assert 0 < record["ar_tokens"] < 8 * 24
        # Fill is maskable and no AR target.
        assert record["ar_tokens"] < record["maskable_tokens"] <= 8 * 28
        assert 0 < record["masked_tokens"] <= record["maskable_tokens"]
    assert "conversations in" in (tuned / "run.log").read_text()


def test_a_second_epoch_is_another_order(settings: tuple[str, ...], sft: tuple[str, ...], tuned: Path) -> None:
    config = composed(*settings, *sft, f"run.dir={tuned}")
    (*_, order) = stage_orders(config, stage_plans(config)).values()
    (samples,) = order.sets
    assert len(samples) < STEPS * 8
    first = [order.locate(index)[1] for index in range(len(samples))]
    second = [order.locate(index)[1] for index in range(len(samples), 2 * len(samples))]
    assert sorted(first) == sorted(second) == list(range(len(samples)))
    assert first != second


@pytest.mark.parametrize("stop", [BEFORE, BEFORE + 3])
def test_stopping_changes_nothing(train: Train, sft: tuple[str, ...], tuned: Path, tmp_path: Path, stop: int) -> None:
    train(tmp_path, *sft, f"run.max_steps={stop}")
    shutil.rmtree(tmp_path / "packing")  # it is made again
    assert_same_run(train(tmp_path, *sft), tuned)


@pytest.fixture(scope="session")
def alone(data: tuple[str, ...], sft: tuple[str, ...]) -> tuple[str, ...]:
    """Overrides of a run of this stage, without other data."""
    common = [override for override in data if not override.startswith(("data.train", "data.validation"))]
    return (*common, *sft, "stages=sft", "data.train=[]", "data.validation=[]")


def test_it_needs_no_other_data_and_no_noise_without_alpha(alone: tuple[str, ...], tmp_path: Path) -> None:
    """The AR loss on answers alone: a control that has no noisy stream."""
    train_here(tmp_path, *alone, "stages.sft.alpha=0", "stages.sft.noisy_length=auto", "run.max_steps=2", *HELD_OUT)
    for record in records_of(tmp_path):
        assert not record["validation"]["diffusion_loss"]
        assert record["diffusion_loss"] is None
        assert record["maskable_tokens"] == 0 < record["ar_tokens"]


def test_auto_is_a_whole_128(alone: tuple[str, ...], tmp_path: Path) -> None:
    train_here(tmp_path, *alone, "stages.sft.noisy_length=auto", "run.max_steps=1", *HELD_OUT)
    (record,) = records_of(tmp_path)
    assert record["validation"]["diffusion_loss"].keys() == {"0.25", "0.5", "0.75", "1"}
    assert "noisy stream of 128 tokens" in (tmp_path / "run.log").read_text()


def test_a_begun_stage_keeps_its_length(
    alone: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `auto` would be now, under another layout for instance; a layout that it does not fit is refused."""
    run = (*alone, "stages.sft.noisy_length=auto", *HELD_OUT, f"run.dir={tmp_path}")
    train_here(tmp_path, *run, "run.max_steps=1", "checkpoint.every=1")
    monkeypatch.setattr(sample_sets, "_MARGIN", 9)
    assert resolve_noisy_lengths(composed(*run), 1).stages["sft"].noisy_length == 256
    train_here(tmp_path, *run, "run.max_steps=2", "checkpoint.every=1")
    assert set(re.findall(r"noisy stream of (\d+) tokens", (tmp_path / "run.log").read_text())) == {"128"}
    assert [record["step"] for record in records_of(tmp_path)] == [1, 2]
    with pytest.raises(UserError) as refusal:
        noisy_lengths_of_run(composed(*run, "parallel.context=3"), 3)
    assert str(refusal.value) == (
        "stages.sft.noisy_length=128: parallel.context=3 splits a sample into 6 equal parts; take a multiple of 6; "
        f"{tmp_path} has begun with this length: continue it in another layout"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.documents=ignore", "data.documents=ignore: must be isolate: conversations of sft stage 'sft'"),
        ("batch.sequence_length=2", "batch.sequence_length=2: must be at least"),
        ("validation.samples=800", "validation.samples=800: must be at most"),
        ("stages.sft.validation=[]", "stages.sft.validation=[]: name a prepared token set, or set null"),
    ],
)
def test_what_does_not_fit_is_refused(alone: tuple[str, ...], tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        train_here(tmp_path, *alone, *HELD_OUT, override)
    assert message in str(refusal.value)
    assert not (tmp_path / "checkpoints").exists()


def test_only_an_sft_stage_sets_the_length_of_its_noisy_stream(settings: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stages.joint.noisy_length=64: must be auto with kind=joint"):
        train_here(tmp_path, *settings, "+stages.joint.noisy_length=64")


def test_conversations_are_no_text(alone: tuple[str, ...], tmp_path: Path) -> None:
    conversations = next(each for each in alone if each.startswith("stages.sft.train="))
    stage = ("stages=[quickstart,sft]", "run.stages=[ar]", conversations.replace("stages.sft", "data"))
    with pytest.raises(UserError, match=r"^data\.train: .* is a set of conversations, not for stages\.ar of kind ar"):
        train_here(tmp_path, *alone, *stage, "validation.every=0", "evaluation.every=0")


def test_a_drafter_learns_from_answers_after_it(alone: tuple[str, ...], tuned: Path, tmp_path: Path) -> None:
    """Its noisy stream is fitted to the answers; over text it has as many tokens as the sample."""
    kept = [override for override in alone if not override.startswith("stages")]
    (train,) = (override for override in alone if override.startswith("stages.sft.train="))
    drafter = [*kept, "stages=drafter", "stages.drafter.adapter.block_size=4", f"stages.drafter.tokens={STEP_TOKENS}"]
    over_answers = [*drafter, train.replace("sft", "drafter"), f"init.checkpoint={tuned}"]
    lengths = [
        resolve_noisy_lengths(composed(*each), 1).stages["drafter"].noisy_length
        for each in (over_answers, [*drafter, *(each for each in alone if each.startswith("data.train"))])
    ]
    assert lengths == [128, "auto"]
    (record,) = records_of(train_here(tmp_path, *over_answers, "data.validation=[]"))
    assert 8 <= record["drafter"]["blocks"] <= 8 * 24 // 2
