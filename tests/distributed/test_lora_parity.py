"""Training a LoRA under every layout against one process, and against explicit weights W + lora_alpha / rank B A."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from case_groups import CaseGroups, selected_cases
from parity_cases import CP2, DP2, PP2_VIRTUAL, SINGLE, TP2, TP2_DP2, TP2_PP2, TP2_SEQUENCE, Layout
from tiny_runs import STEP_TOKENS, TINY_MODEL, composed, data_overrides

from nld_train.config.load import config_to_dict
from nld_train.config.schema import LORA_TARGETS, LoraConfig
from nld_train.config.schema.training import LoraTarget

WORKER = Path(__file__).with_name("lora_worker.py")
STEPS = 2
SOME: tuple[LoraTarget, ...] = ("k_proj", "o_proj", "up_proj")
# A layout, overrides that change no result, the stage, and the targets.
Case = tuple[Layout, tuple[str, ...], str, tuple[LoraTarget, ...]]
BASE: Case = (SINGLE, (), "joint", LORA_TARGETS)
PARTLY: Case = (SINGLE, (), "ar", SOME)
REFERENCES = [BASE, PARTLY]
PAIRS: list[Case] = [
    (TP2, (), "joint", LORA_TARGETS),
    (TP2_SEQUENCE, (), "joint", LORA_TARGETS),
    (TP2_SEQUENCE, ("execution.recompute=full",), "ar", SOME),
]
MORE: list[Case] = [
    (SINGLE, ("execution.recompute=full", "batch.micro_size=8"), "joint", LORA_TARGETS),
    (PP2_VIRTUAL, (), "joint", LORA_TARGETS),
    (DP2, ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true"), "joint", LORA_TARGETS),
    (CP2, (), "joint", LORA_TARGETS),
    (TP2_PP2, (), "joint", LORA_TARGETS),
    (TP2_DP2, (), "ar", SOME),
]


def name_of(case: Case) -> str:
    layout, extra, stage, targets = case
    return "-".join([layout.name, stage, str(len(targets)), *(override.rpartition(".")[2] for override in extra)])


def config_of(case: Case, prefix: str) -> dict[str, Any]:
    layout, extra, stage, targets = case
    config = composed(
        *TINY_MODEL,
        *data_overrides(prefix),
        f"run.stages=[{stage}]",
        f"stages.{stage}.tokens={STEPS * STEP_TOKENS}",
        f"stages.{stage}.schedule.warmup_fraction=0",
        *layout.overrides,
        *extra,
    )
    lora = LoraConfig(3, 6, targets)
    stages = {**config.stages, stage: replace(config.stages[stage], lora=lora)}
    return config_to_dict(replace(config, stages=stages))


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, token_set: str) -> CaseGroups:
    folder, config = tmp_path_factory.mktemp("lora"), partial(config_of, prefix=token_set)
    return CaseGroups(WORKER, selected_cases(request, REFERENCES), folder, name_of, config, by_hand=REFERENCES)


CASES = [
    *(pytest.param(case, id=name_of(case)) for case in PAIRS),
    *(pytest.param(case, id=name_of(case), marks=[pytest.mark.long]) for case in MORE),
]
pytestmark = pytest.mark.timeout(900)


def measures(record: dict[str, Any]) -> dict[str, float]:
    names = ("loss", "ar_loss", "diffusion_loss", "grad_norm")
    return {name: record[name] for name in names if record[name] is not None}


@pytest.mark.parametrize("case", REFERENCES, ids=name_of)
def test_the_first_step_is_that_of_explicitly_changed_weights(trained: CaseGroups, case: Case) -> None:
    expected = trained.outcome(case, by_hand=True)
    assert measures(trained.outcome(case)["records"][0]) == pytest.approx(measures(expected), rel=2e-4)
    gradients, found = expected["gradients"], expected["found"]
    assert len(gradients) == len(found) == 2 * 4 * len(case[3])
    for name, gradient in gradients.items():
        layer, _, target, part = (
            name.removeprefix("base_model.model.encoder.layers.").removesuffix(".weight").split(".")
        )
        module = "mlp" if target in LORA_TARGETS[4:] else "self_attention"
        key = f"decoder.layers.{layer}.{module}.lora.{target}.{'down' if part == 'lora_A' else 'up'}.weight"
        expected_gradient = torch.tensor(gradient)
        assert expected_gradient.any()
        torch.testing.assert_close(torch.tensor(found[key]), expected_gradient, atol=2e-6, rtol=2e-3)


@pytest.mark.parametrize("case", CASES)
def test_every_step_equals_that_of_one_process(trained: CaseGroups, case: Case) -> None:
    found, expected = trained.outcome(case), trained.outcome(BASE if case[2] == "joint" else PARTLY)
    assert len(expected["records"]) == STEPS
    for one, other in zip(found["records"], expected["records"], strict=True):
        assert measures(one) == pytest.approx(measures(other), rel=2e-4)
    assert found["lora"].keys() == expected["lora"].keys()
    for name, values in found["lora"].items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(expected["lora"][name]), atol=2e-5, rtol=1e-4)
    assert found["frozen"]


@pytest.mark.parametrize("case", [*REFERENCES, *CASES], ids=lambda case: name_of(case) if case in REFERENCES else None)
def test_decoding_uses_the_lora_and_merged_weights_say_the_same(trained: CaseGroups, case: Case) -> None:
    if case[0] is CP2:
        pytest.skip("decoding has no context parallelism")
    found, expected = trained.outcome(case), trained.outcome(BASE if case[2] == "joint" else PARTLY)
    assert found["decoded"] == found["merged"] == expected["decoded"]


def test_only_the_lora_has_gradient_buffers(trained: CaseGroups) -> None:
    lora = trained.outcome(BASE)["lora"]
    numbers = sum(torch.tensor(values).numel() for values in lora.values())
    (buffered,) = trained.outcome(BASE)["buffered"]
    assert numbers <= buffered < numbers + 64 * len(lora) + 128
