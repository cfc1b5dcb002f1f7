"""Drafter steps under every layout against one process, and against the step written out by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from case_groups import CaseGroups, selected_cases
from chat_sets import random_conversations, write_chat_manifest, write_chat_set
from parity_cases import DP2, PP2, PP2_VIRTUAL, SINGLE, TP2, TP2_DP2, TP2_PP2, TP2_SEQUENCE, Layout
from tiny_runs import STEP_TOKENS, TINY_MODEL, composed, data_overrides

from nld_train.config.load import config_to_dict

WORKER = Path(__file__).with_name("drafter_worker.py")
STEPS = 2
Case = tuple[Layout, tuple[str, ...]]
# A vocabulary of 67 is padded under TP2; what is chosen of it is less than what there is.
STAGE = (
    "stages=drafter",
    f"stages.drafter.tokens={STEPS * STEP_TOKENS}",
    "stages.drafter.adapter.rank=3",
    "stages.drafter.adapter.lora_alpha=6",
    "stages.drafter.adapter.block_size=5",
    "stages.drafter.adapter.top_k=10",
    "stages.drafter.adapter.greedy_share=0.3",
    "stages.drafter.schedule.learning_rate=0.001",
    "stages.drafter.schedule.warmup_fraction=0",
)
# Answers of conversations, of which not all blocks fit.
CHAT = "noisy_length=16"
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
ALONE: list[Case] = [
    (SINGLE, ()),
    (SINGLE, ("batch.micro_size=8",)),
    (SINGLE, ("execution.recompute=full",)),
    (SINGLE, ("execution.recompute=selective", "execution.head_chunk_rows=7")),
    (SINGLE, (CHAT,)),
]
PAIRS: list[Case] = [
    (PP2_VIRTUAL, ()),
    (DP2, OVERLAP),
    (TP2_SEQUENCE, ()),
    (PP2, (CHAT,)),
]
# One chunk of the model on each process is less than two, TP is part of TP with sequence parallelism, and the rest of
# these is in other cases of `ALONE`.
MORE_PAIRS: list[Case] = [
    (TP2, ()),
    (PP2, ()),
    (PP2, ("execution.recompute=full",)),
    (DP2, ("batch.micro_size=1",)),
]
FOURS: list[Case] = [(TP2_PP2, ()), (TP2_DP2, ())]


def alone(case: Case) -> Case:
    """The same samples in one process."""
    return (SINGLE, (CHAT,)) if CHAT in case[1] else ALONE[0]


def name_of(case: Case) -> str:
    layout, extra = case
    return "-".join([layout.name, *(override.rpartition(".")[2] for override in extra)])


def config_of(case: Case, prefix: str, folder: Path) -> dict[str, Any]:
    overrides = [*TINY_MODEL, *data_overrides(prefix), *STAGE, *case[0].overrides]
    overrides += chat(folder) if CHAT in case[1] else case[1]
    return config_to_dict(composed(*overrides))


def chat(folder: Path) -> list[str]:
    prefix = folder / "chat"
    if not Path(f"{prefix}.bin").exists():
        conversations = random_conversations(5, 60, longest=7, largest_id=66)
        write_chat_manifest(write_chat_set(prefix, conversations), conversations, vocabulary_size=67)
    sources = f"stages.drafter.train=[{{prefix: {prefix}, weight: 1}}]"
    return [sources, f"stages.drafter.{CHAT}", f"run.dir={folder / 'chat-run'}"]


@pytest.fixture(scope="module")
def drafters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, token_set: str) -> CaseGroups:
    folder, references = tmp_path_factory.mktemp("drafters"), [ALONE[0], (SINGLE, (CHAT,))]
    config = partial(config_of, prefix=token_set, folder=folder)
    return CaseGroups(WORKER, selected_cases(request, references), folder, name_of, config, by_hand=references)


CASES = [
    *(pytest.param(case, id=name_of(case)) for case in [*ALONE[1:], *PAIRS]),
    *(pytest.param(case, id=name_of(case), marks=[pytest.mark.long]) for case in [*MORE_PAIRS, *FOURS]),
]
pytestmark = pytest.mark.timeout(900)


def measures(record: dict[str, Any]) -> dict[str, float]:
    return {"loss": record["loss"], "grad_norm": record["grad_norm"], **record["drafter"]}


@pytest.mark.parametrize("case", [ALONE[0], (SINGLE, (CHAT,))], ids=["text", "answers"])
def test_the_first_step_equals_the_step_by_hand(drafters: CaseGroups, case: Case) -> None:
    found, expected = measures(drafters.outcome(case)["records"][0]), drafters.outcome(case, by_hand=True)
    assert expected["blocks"] > 10
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("case", CASES)
def test_every_step_equals_that_of_one_process(drafters: CaseGroups, case: Case) -> None:
    found, expected = drafters.outcome(case), drafters.outcome(alone(case))
    assert len(expected["records"]) == STEPS
    for one, other in zip(found["records"], expected["records"], strict=True):
        assert measures(one) == pytest.approx(measures(other), rel=2e-4)
    assert found["adapter"].keys() == expected["adapter"].keys()
    for name, values in found["adapter"].items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(expected["adapter"][name]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_keep_every_bit(drafters: CaseGroups, case: Case) -> None:
    assert drafters.outcome(case)["frozen"]


@pytest.mark.parametrize("case", CASES)
def test_the_adapter_drafts_the_same_under_every_layout(drafters: CaseGroups, case: Case) -> None:
    found, expected = drafters.outcome(case)["drafted"], drafters.outcome(ALONE[0])["drafted"]
    assert found == expected
    assert found["adapter"]["token_ids"] == found["plain"]["token_ids"] == found["ar"]["token_ids"]
    assert found["adapter"]["accepted"] != found["plain"]["accepted"]


@pytest.mark.parametrize("case", CASES)
def test_every_mode_reads_the_same_under_every_layout(drafters: CaseGroups, case: Case) -> None:
    """Greedily and with a temperature, rows of unequal length and progress; nobody miscounts a forward."""
    found, expected = drafters.outcome(case)["readings"], drafters.outcome(ALONE[0])["readings"]
    assert found == expected
    for one in expected.values():
        assert one["counted"] == one["forwards"] + one["prefill"]
    assert expected["greedy linear"]["token_ids"] == expected["greedy ar"]["token_ids"]
    assert expected["greedy quadratic"]["token_ids"] == expected["greedy ar"]["token_ids"]
    assert expected["sampled ar"]["token_ids"] != expected["greedy ar"]["token_ids"]
    assert any(len(set(one["sequence_forwards"])) > 1 for one in expected.values()), (
        "rows of unequal progress are the point"
    )
