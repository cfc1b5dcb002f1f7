"""Clean tokens that see their whole block: what is refused, and why: the labels of AR rows can be seen."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from tiny_runs import TINY_MODEL, composed, data_overrides, records_of, train_here

from nld_train.config.validate import validate
from nld_train.data.packed import indexed_dataset_module
from nld_train.errors import UserError
from nld_train.training.stages import joint

LETTERS, STEPS, SAMPLES, LENGTH = 16, 200, 16, 32
ENTROPY = math.log(LETTERS)
BLOCK = ("diffusion.clean=block", "evaluation.modes=[diffusion]")


def write_random_letters(prefix: Path) -> str:
    """One long text in which no letter depends on another one."""
    builder = indexed_dataset_module().IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    letters = np.random.default_rng(1).integers(4, 4 + LETTERS, STEPS * SAMPLES * LENGTH + 1)
    builder.add_document(letters, [len(letters)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def ar_loss(folder: Path, *overrides: str) -> float:
    """The mean AR loss of the last steps of training on random letters that were never seen before."""
    run = train_here(
        folder / "run",
        *TINY_MODEL,
        *data_overrides(write_random_letters(folder / "letters")),
        "model.num_hidden_layers=2",
        "model.initializer_range=0.05",
        "data.documents=ignore",
        "diffusion.block_size=8",
        f"batch.sequence_length={LENGTH}",
        f"batch.global_size={SAMPLES}",
        f"batch.micro_size={SAMPLES}",
        "run.stages=[joint]",
        f"stages.joint.tokens={STEPS * SAMPLES * LENGTH}",
        "stages.joint.schedule.learning_rate=1e-2",
        f"checkpoint.every={STEPS}",
        *overrides,
    )
    return fmean(record["ar_loss"] for record in records_of(run)[-20:])


@pytest.mark.long
def test_ar_rows_see_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the refusal lifted, the AR loss falls below the entropy of the text: it is no loss of a prediction."""
    with pytest.raises(UserError, match=r"^stages\.joint\.ar_weight=1\.0: must be 0 with diffusion\.clean=block"):
        ar_loss(tmp_path, *BLOCK)
    monkeypatch.setattr(joint, "check_clean", lambda config, name: None)
    assert ar_loss(tmp_path, *BLOCK) < 0.8 * ENTROPY


@pytest.mark.long
def test_causal_ones_do_not(tmp_path: Path) -> None:
    assert ar_loss(tmp_path) > 0.99 * ENTROPY


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stages.joint.ar_weight=0.5",), "stages.joint.ar_weight=0.5: must be 0 with diffusion.clean=block"),
        (
            ("stages.joint.ar_weight=0", "evaluation.modes=[ar,diffusion]"),
            "evaluation.modes=[ar,diffusion]: must be [diffusion] with diffusion.clean=block",
        ),
        (
            ("stages=[quickstart,drafter]", "run.stages=[drafter]", "init.checkpoint=runs/base"),
            "diffusion.clean=block: must be causal: stage 'drafter' trains drafts of AR predictions",
        ),
    ],
)
def test_refusals(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(composed("run.dry=true", *BLOCK, *overrides), 1)
    assert str(refused.value).startswith(message)


def test_an_ar_stage_before_it_is_causal_and_allowed() -> None:
    config = composed("run.dry=true", "run.stages=[ar,joint]", "stages.joint.ar_weight=0", *BLOCK)
    validate(config, 1)
