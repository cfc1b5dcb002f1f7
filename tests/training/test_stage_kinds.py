"""A stage kind of this file's own, registered in one place, goes through everything that a stage goes through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import STEP_TOKENS, records_of
from training_runs import Train

from nld_train.config.compose import compose_config
from nld_train.config.counts import causal_visible_pairs, step_flops, training_flops
from nld_train.config.plan import StagePlan, stage_plans
from nld_train.config.report import print_plan
from nld_train.config.schema import Config, DiffusionConfig, StageConfig
from nld_train.config.stage_kinds import STAGE_KINDS
from nld_train.config.validate import validate
from nld_train.errors import UserError
from nld_train.model.rotary import RotaryEmbedding
from nld_train.planner.memory import largest_memory
from nld_train.training.stages.kind import EvaluatedVariant, StageKind, StageTrainer
from nld_train.training.stages.objective_trainer import ObjectiveTrainer

PATIENCE = 2


class PatientTrainer(StageTrainer):
    """Updates the weights in every second step only."""

    def __init__(self, inner: ObjectiveTrainer) -> None:
        self.inner = inner
        self.steps = 0

    def step(self, model: list[Any], optimizer: Any, batches: list[Any]) -> dict[str, Any]:
        self.steps += 1
        if self.steps % PATIENCE:
            loss = self.held_out_losses(model, batches)[0]
            return {"loss": loss, "ar_loss": None, "diffusion_loss": None, "grad_norm": 0.0}
        collated = [self.inner.collate.of(each) for each in batches]
        return self.inner.step(model, optimizer, collated) | {"patience": PATIENCE}

    def held_out_losses(self, model: list[Any], samples: list[Any]) -> tuple[float, float]:
        return self.inner.held_out_losses(model, samples)


class PatientKind(StageKind):
    """See `StageKind`."""

    name = "patient"
    planned = True

    def check_stage(self, key: str, stage: StageConfig) -> None:
        super().check_stage(key, stage)
        if stage.data_start == "beginning":
            raise UserError(f"{key}.data_start={stage.data_start}: a patient stage goes on")

    def check_run(self, config: Config, name: str) -> None:
        if config.parallel.context > 1:
            raise UserError(f"parallel.context={config.parallel.context}: stage {name!r} is patient; set 1")

    def stream_lengths(self, length: int) -> tuple[int, ...]:
        return (length, 3 * length)

    def visible_pairs(self, length: int, diffusion: DiffusionConfig) -> int:
        return 5 * causal_visible_pairs(length)

    def head_rows(self, length: int, diffusion: DiffusionConfig) -> float:
        return length / 2

    def validation_levels(self, config: Config) -> tuple[float | None, ...]:
        return (None,)

    def decode_variants(self, config: Config, stage: StageConfig) -> tuple[EvaluatedVariant, ...]:
        return (EvaluatedVariant("ar", "ar", 4), EvaluatedVariant("fast", "diffusion", 4))

    def make_trainer(
        self, config: Config, plan: StagePlan, rotary: RotaryEmbedding, dtype: torch.dtype, device: torch.device
    ) -> StageTrainer:
        return PatientTrainer(ObjectiveTrainer.of(config, plan.stage, rotary, dtype, device))


PATIENT = PatientKind()
STAGE = ("run.stages=[ar]", "stages.ar.kind=patient")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGE_KINDS, "patient", f"{__name__}:PATIENT")


def test_plans_and_counts_are_those_of_the_kind(capsys: pytest.CaptureFixture[str]) -> None:
    config = compose_config([*STAGE, "run.dry=true"])
    validate(config, 1)
    (plan,) = stage_plans(config)
    assert plan.kind is PATIENT
    length = config.batch.sequence_length
    sample = training_flops(config.model, 3 * length, PATIENT.visible_pairs(length, config.diffusion), length / 2)
    assert step_flops(config, plan.stage) == config.batch.global_size * sample
    print_plan(config, 1)
    assert "patient" in capsys.readouterr().out
    # Three times the positions of an AR stage, in one micro-batch.
    other = compose_config(["run.stages=[ar]"])
    assert largest_memory(config, 1).activations == 3 * largest_memory(other, 1).activations


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("stages.ar.data_start=beginning",), "stages.ar.data_start=beginning: a patient stage goes on"),
        (("parallel.context=2",), "parallel.context=2: stage 'ar' is patient; set 1"),
        (("stages.ar.kind=impatient",), "stages.ar.kind=impatient: must be one of ar, joint, sft, drafter, patient"),
        # Three streams of an odd length, or one, do not divide into two parts.
        (("parallel.tensor=2", "parallel.sequence=true", "batch.sequence_length=255"), "batch.sequence_length=255: "),
        (
            ("parallel.tensor=2", "parallel.sequence=true", "parallel.overlap_tensor=true"),
            "parallel.overlap_tensor=true: has buffers of one length, but a step of stage 'ar' has passes of",
        ),
    ],
)
def test_its_refusals_are_made(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(compose_config([*STAGE, *overrides]), 2)
    assert str(refused.value).startswith(said)


def test_it_trains_validates_and_goes_on(train: Train, tmp_path: Path) -> None:
    tokens = f"stages.ar.tokens={4 * STEP_TOKENS}"
    train(tmp_path, *STAGE, tokens, "validation.every=1", "run.max_steps=2")
    records = records_of(train(tmp_path, *STAGE, tokens, "validation.every=1"))
    assert [record.get("patience") for record in records] == [None, PATIENCE, None, PATIENCE]
    held_out = [record["validation"]["ar_loss"] for record in records]
    assert held_out[1] != held_out[0]
    assert held_out[2] == held_out[1]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: stage["steps"] for name, stage in summary["stages"].items()} == {"ar": 4}
