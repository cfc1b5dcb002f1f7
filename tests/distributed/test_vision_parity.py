"""A vision-language model under every layout trains and decodes as on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from case_groups import CaseGroups, selected_cases
from parity_cases import DP2, PP2, PP2_VIRTUAL, SINGLE, TP2, TP2_SEQUENCE, Layout
from pictures import vision_override
from tiny_runs import TINY_MODEL, composed, data_overrides

from nld_train.config.load import config_to_dict
from nld_train.config.vision_tensors import PROJECTOR, vision_parameters

WORKER = Path(__file__).with_name("vision_worker.py")
STEPS, LENGTH = 2, 48
Case = tuple[Layout, str, tuple[str, ...]]
WHOLE, TEXT, PROJECTOR_ALONE = ((SINGLE, trained, ()) for trained in ("all", "text", "projector"))
REFERENCES: list[Case] = [WHOLE, TEXT, PROJECTOR_ALONE]
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
CASES: list[Case] = [
    (TP2_SEQUENCE, "all", ()),
    (PP2_VIRTUAL, "all", ()),
    (DP2, "all", OVERLAP),
    (TP2, "all", ("execution.recompute=full",)),
    (PP2, "projector", ()),
    (DP2, "text", ()),
]


def name_of(case: Case) -> str:
    layout, trained, extra = case
    return "-".join([layout.name, trained, *(override.rpartition(".")[2] for override in extra)])


def config_of(case: Case, prefix: str) -> Any:
    layout, trained, extra = case
    return composed(
        *TINY_MODEL,
        *data_overrides(prefix),
        f"model.vision={vision_override()}",
        f"batch.sequence_length={LENGTH}",
        # One sample each, so that micro-batches without pictures occur.
        "batch.micro_size=1",
        "run.stages=[joint]",
        f"stages.joint.tokens={STEPS * 8 * LENGTH}",
        "stages.joint.schedule.warmup_fraction=0",
        f"stages.joint.trained_weights={trained}",
        *layout.overrides,
        *extra,
    )


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, token_set: str) -> CaseGroups:
    def config(case: Case) -> dict[str, Any]:
        return config_to_dict(config_of(case, token_set))

    return CaseGroups(WORKER, selected_cases(request, REFERENCES), tmp_path_factory.mktemp("vision"), name_of, config)


pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_step_and_gradient_equals_those_of_one_process(trained: CaseGroups, case: Case) -> None:
    found, expected = trained.outcome(case), trained.outcome((SINGLE, case[1], ()))
    for one, other in zip(found["records"], expected["records"], strict=True):
        for name in ("loss", "ar_loss", "diffusion_loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=2e-4), name
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, values in expected["gradients"].items():
        wanted = torch.tensor(values)
        difference = (torch.tensor(found["gradients"][name]) - wanted).norm()
        assert difference <= 2e-4 * wanted.norm() + 1e-8, name
    assert found["frozen"]
    for name, values in expected["vision"].items():
        torch.testing.assert_close(torch.tensor(found["vision"][name]), torch.tensor(values), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_prompts_with_pictures_are_decoded_as_by_one_process(trained: CaseGroups, case: Case) -> None:
    expected = trained.outcome(WHOLE)["readings"]
    assert trained.outcome(case)["readings"] == expected
    said = {name: reading["token_ids"] for name, reading in expected.items()}
    assert said["greedy linear"] == said["greedy ar"] != said["greedy diffusion"]
    assert len(set(map(tuple, said["greedy ar"]))) == 3


@pytest.mark.parametrize("case", REFERENCES, ids=name_of)
def test_which_weights_are_trained(trained: CaseGroups, case: Case) -> None:
    found, start = trained.outcome(case), config_of(case, "none").model
    whole, tower = trained.outcome(WHOLE)["trained"], vision_parameters(start)
    of_projector = sum(
        torch.tensor(values).numel() for name, values in found["vision"].items() if name.startswith(PROJECTOR)
    )
    assert found["trained"] == {"all": whole, "text": whole - tower, "projector": of_projector}[case[1]]
    assert found["frozen"]
    assert found["records"][0]["loss"] == trained.outcome(WHOLE)["records"][0]["loss"]
