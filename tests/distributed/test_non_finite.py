"""A NaN or an infinity on one process stops the update on all of them, and says where it was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import run_ranks
from parity_cases import DP2, PP2, TP2, TP2_PP2, Case
from process_groups import Outcomes
from tiny_runs import STEP_TOKENS, TINY_MODEL, data_overrides, newest_checkpoint, records_of, two_stages

WEIGHTS = [Case(layout, "joint", kind="nan weight") for layout in (DP2, TP2, PP2)]
FOUR = Case(TP2_PP2, "joint", kind="nan weight")
GRADIENTS = [Case(layout, "joint", kind="infinite gradient") for layout in (DP2, TP2, PP2)]


@pytest.mark.parametrize(
    ("case", "term"),
    [
        *(pytest.param(case, "ar loss is nan", id=case.name) for case in WEIGHTS),
        *(pytest.param(case, "gradient norm is", id=case.name) for case in GRADIENTS),
        pytest.param(FOUR, "ar loss is nan", id=FOUR.name, marks=pytest.mark.long),
    ],
)
def test_no_process_updates_its_weights(case: Case, term: str, outcomes: Outcomes) -> None:
    (record,) = outcomes.records(case)
    assert len(record["messages"]) == case.layout.world
    for message in record["messages"]:
        assert message.startswith(term)
        assert "\n" not in message
    assert record["kept"] == [True] * case.layout.world


@pytest.mark.long
def test_a_diverged_run_leaves_its_last_checkpoint(token_set: str, tmp_path: Path) -> None:
    """The learning rate rises to 1e30: the first step, with half of it, makes weights that overflow in the second."""
    rates = [f"stages.ar.schedule.{name}=1e30" for name in ("learning_rate", "final_learning_rate")]
    overrides = [*TINY_MODEL, *data_overrides(token_set), *two_stages(4, 4), *rates, "checkpoint.every=1"]
    done = run_ranks(2, ["-m", "nld_train.train", *overrides, f"run.dir={tmp_path}"], timeout=240)
    assert done.status != 0
    errors = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert errors
    assert all(("loss is" in line or "gradient norm is" in line) for line in errors), done.output
    assert "Traceback" not in done.output
    from nld_train.training.checkpoint.manifest import find_damage

    assert newest_checkpoint(tmp_path).name == "step_00000001"
    assert find_damage(newest_checkpoint(tmp_path)) is None
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.tmp")] == []
    assert [record["step"] for record in records_of(tmp_path)] == [1]
    progress = json.loads((newest_checkpoint(tmp_path) / "progress.json").read_text())
    assert progress["step"] * STEP_TOKENS == records_of(tmp_path)[0]["tokens"]
