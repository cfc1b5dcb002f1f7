"""A vision-language model under every layout trains as on one process: losses, gradients and the tower's weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_ranks
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


class Groups:
    """Outcomes by world size; a group of processes runs all cases of its size at the first question."""

    def __init__(self, selected: Sequence[Case], folder: Path, prefix: str) -> None:
        self.selected, self.folder, self.prefix = selected, folder, prefix
        self.found: dict[int, dict[str, Any]] = {}

    def outcome(self, case: Case) -> dict[str, Any]:
        world = case[0].world
        if world not in self.found:
            self.found[world] = self._run(world, [one for one in self.selected if one[0].world == world])
        outcome: dict[str, Any] = self.found[world][name_of(case)]
        return outcome

    def _run(self, world: int, cases: list[Case]) -> dict[str, Any]:
        described = [{"name": name_of(c), "config": config_to_dict(config_of(c, self.prefix))} for c in cases]
        paths = [self.folder / f"{kind}{world}.json" for kind in ("cases", "results")]
        paths[0].write_text(json.dumps(described))
        done = run_ranks(world, [str(WORKER), *map(str, paths)], timeout=120 + 40 * len(cases))
        assert done.status == 0, done.output[-6000:]
        results: dict[str, Any] = json.loads(paths[1].read_text())
        return results


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, token_set: str) -> Groups:
    items = [item for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    chosen = [*REFERENCES, *(item.callspec.params["case"] for item in items)]
    return Groups(list(dict.fromkeys(chosen)), tmp_path_factory.mktemp("vision"), token_set)


pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_step_and_gradient_equals_those_of_one_process(trained: Groups, case: Case) -> None:
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


@pytest.mark.parametrize("case", REFERENCES, ids=name_of)
def test_which_weights_are_trained(trained: Groups, case: Case) -> None:
    found, start = trained.outcome(case), config_of(case, "none").model
    whole, tower = trained.outcome(WHOLE)["trained"], vision_parameters(start)
    of_projector = sum(
        torch.tensor(values).numel() for name, values in found["vision"].items() if name.startswith(PROJECTOR)
    )
    assert found["trained"] == {"all": whole, "text": whole - tower, "projector": of_projector}[case[1]]
    assert found["frozen"]
    assert found["records"][0]["loss"] == trained.outcome(WHOLE)["records"][0]["loss"]
