"""Legal layouts, their order, and the command `nld-plan`."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from nld_train.commands.plan import main
from nld_train.config.compose import compose_config
from nld_train.config.schema import Config
from nld_train.config.validate import validate
from nld_train.errors import UserError
from nld_train.planner.choose import all_plans
from nld_train.planner.hardware import GIBIBYTE, Hardware, assumptions, measured_utilisations
from nld_train.planner.layouts import legal_layouts
from nld_train.planner.memory import rank_memory
from nld_train.planner.plan import LayoutPlan
from nld_train.planner.request import read_request
from nld_train.planner.step_time import step_time
from nld_train.training.stages.ar import AR
from nld_train.training.stages.joint import JOINT
from nld_train.training.stages.kind import StageKind

# What is assumed without any measurement.
ASSUMED = assumptions({}, Path("/nowhere")).hardware


def _plans(*words: str, hardware: Hardware = ASSUMED) -> list[LayoutPlan]:
    return all_plans(read_request(words), hardware)


@pytest.mark.parametrize(("model", "gpus"), [("3b", 8), ("8b", 256), ("14b", 64)])
def test_every_layout_is_legal_and_there_once(model: str, gpus: int) -> None:
    request = read_request([f"model={model}", f"gpus={gpus}"])
    layouts = list(legal_layouts(request.config, request.choices))
    assert len(layouts) > 50
    for layout in layouts:
        validate(layout, gpus)
        assert layout.parallel.tensor <= request.choices.node_size
    assert len({(layout.parallel, layout.batch, layout.execution) for layout in layouts}) == len(layouts)
    assert {layout.parallel.tensor for layout in layouts} == {1, 2, 4, 8}
    assert {layout.parallel.context for layout in layouts} == {1, 2, 4, 8}
    assert all(layout.parallel.tensor * layout.parallel.context <= request.choices.node_size for layout in layouts)
    assert any(layout.parallel.virtual_pipeline for layout in layouts)


def test_named_keys_stay_as_they_are() -> None:
    plans = _plans("model=8b", "gpus=64", "parallel.tensor=4", "micro_size=2", "execution.recompute=selective")
    for plan in plans:
        assert (plan.config.parallel.tensor, plan.config.batch.micro_size) == (4, 2)
        assert plan.config.execution.recompute == "selective"


def test_the_best_fits_and_is_the_fastest() -> None:
    plans = _plans("model=8b", "gpus=256")
    fitting = [plan for plan in plans if plan.fits]
    assert plans[: len(fitting)] == fitting
    assert 0 < len(fitting) < len(plans)
    assert plans[0].days == pytest.approx(min(plan.days for plan in fitting), rel=2e-3)
    limit = (80 - ASSUMED.memory_reserve) * GIBIBYTE
    assert all((plan.memory.total * (1 + ASSUMED.memory_margin) <= limit) == plan.fits for plan in plans)
    exact = _plans("model=8b", "gpus=256", hardware=replace(ASSUMED, memory_margin=0.0))
    assert sum(plan.fits for plan in exact) > len(fitting)
    assert max(plan.memory.total for plan in fitting) < max(plan.memory.total for plan in exact if plan.fits)


def test_published_speed_is_near() -> None:
    """10,456 tokens/s per H100 were published for AR training of an 8B model (docs/method.md, "Evaluation figures")."""
    best = _plans("model=8b", "gpus=256")[0]
    assert best.tokens_per_second["ar"] == pytest.approx(10456, rel=0.25)
    # Twice the positions and 2.06 times the visible pairs.
    assert 1.7 < best.steps["joint"].total / best.steps["ar"].total < 2.3


def _layout(gpus: int, *overrides: str) -> Config:
    config = compose_config(["experiment=paper_8b", "run.dry=true", f"run.plan_world_size={gpus}", *overrides])
    validate(config, gpus)
    return config


def _total(config: Config, gpus: int, rank: int = 0) -> int:
    return rank_memory(config, gpus, rank, JOINT).total


def test_memory_moves_as_it_should() -> None:
    plain = _layout(64)
    assert _total(_layout(64, "parallel.tensor=8"), 64) < _total(plain, 64)
    assert _total(_layout(64, "parallel.sequence=false"), 64) > _total(plain, 64)
    assert _total(_layout(64, "batch.micro_size=2"), 64) > _total(plain, 64)
    assert _total(_layout(64, "batch.sequence_length=8192"), 64) > _total(plain, 64)
    assert _total(_layout(64, "execution.head_chunk_rows=8192"), 64) > _total(plain, 64)
    by_recompute = [_total(_layout(64, f"execution.recompute={kind}"), 64) for kind in ("none", "selective", "full")]
    assert by_recompute == sorted(by_recompute, reverse=True)
    assert rank_memory(plain, 64, 0, AR).total < _total(plain, 64)
    # Half the tokens and the keys and values of all, instead of those that they are gathered from; the optimizer's
    # state is shared as widely as before.
    whole, half = (rank_memory(_layout(64, f"parallel.context={size}"), 64, 0, JOINT) for size in (1, 2))
    assert half.activations == pytest.approx(whole.activations / 2, rel=0.06)
    assert half.optimizer == whole.optimizer
    # More copies of the model share out its optimizer's state, and nothing else.
    few, many = (rank_memory(plain, gpus, 0, JOINT) for gpus in (16, 256))
    assert few.optimizer > 10 * many.optimizer
    assert (few.weights, few.activations) == (many.weights, many.activations)
    # The first pipeline rank keeps the most micro-batches.
    pipeline = _layout(64, "parallel.pipeline=2")
    first, last = (rank_memory(pipeline, 64, rank, JOINT) for rank in (0, 1))
    assert first.activations > last.activations
    assert (first.head == 0, last.head > 0) == (True, True)


def _seconds(config: Config, gpus: int = 64, hardware: Hardware = ASSUMED, kind: StageKind = JOINT) -> float:
    return step_time(config, gpus, kind, hardware, 8).total


def test_time_moves_as_it_should() -> None:
    plain = _layout(64)
    assert _seconds(plain, kind=AR) < _seconds(plain)
    assert _seconds(plain, 256) < _seconds(plain) < _seconds(plain, 16)
    for kind, slower in (("selective", 1.01), ("full", 1.2)):
        assert _seconds(_layout(64, f"execution.recompute={kind}")) > slower * _seconds(plain)
    # Overlapped, the network may be hidden whatever it takes.
    exposed = _layout(64, "parallel.overlap_param_gather=false", "parallel.overlap_grad_reduce=false")
    for key in ("peak_tflops", "nvlink", "network", "joint_utilisation"):
        halved = replace(ASSUMED, **{key: getattr(ASSUMED, key) / 2})
        assert _seconds(exposed, hardware=halved) > _seconds(exposed), key
    # Twice the micro-batches of half the tokens each: what is added is the gathering, by how fast the links are.
    one, two = (step_time(_layout(64, f"parallel.context={size}"), 64, JOINT, ASSUMED, 8) for size in (1, 2))
    assert two.arithmetic == pytest.approx(one.arithmetic)
    assert one.context == 0 < two.context < 0.05 * two.arithmetic
    slow = step_time(_layout(64, "parallel.context=2"), 64, JOINT, replace(ASSUMED, nvlink=ASSUMED.nvlink / 2), 8)
    assert slow.context == pytest.approx(2 * two.context)
    # Without a pipeline there is no bubble; virtual stages make it smaller.
    parts = ["parallel.pipeline=2", "parallel.virtual_pipeline=17"]
    bubbles = [step_time(_layout(64, *parts[:count]), 64, JOINT, ASSUMED, 8).bubble for count in range(3)]
    assert bubbles[0] == 0 < bubbles[2] < bubbles[1]
    assert bubbles[2] == pytest.approx(bubbles[1] / 17, rel=0.2)


def test_what_nothing_hides_is_counted_as_exposed(capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, in the whole run, and beside the layout that the settings have without a plan."""
    time = step_time(_layout(64, "parallel.context=2"), 64, JOINT, ASSUMED, 8)
    assert time.exposed == time.tensor + time.context + time.data
    assert time.total == pytest.approx(time.arithmetic + time.exposed + time.bubble + time.update)
    words = ["model=8b", "gpus=64", "parallel.pipeline=1", "micro_size=1", "execution.recompute=none"]
    plans = {
        plan.config.parallel.tensor: plan for plan in _plans(*words, "parallel.context=1", "parallel.sequence=true")
    }
    assert 0 < plans[2].exposed < plans[4].exposed < plans[8].exposed < 0.4
    (place,) = [number for number, plan in enumerate(_plans(*words), start=1) if plan == plans[2]]
    assert main([*words, "rows=1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Number {place} is the layout of the settings themselves (tensor=2 context=1" in printed
    assert f"GiB, {plans[2].exposed:.0%} in communication, {plans[2].days:.1f} days." in printed


def test_a_layout_on_one_device_communicates_nothing() -> None:
    config = compose_config(["experiment=paper_3b", "run.dry=true", "run.plan_world_size=1"])
    time = step_time(config, 1, JOINT, ASSUMED, 8)
    assert (time.tensor, time.pipeline, time.bubble, time.data) == (0, 0, 0, 0)


def test_measurements_replace_assumptions(tmp_path: Path) -> None:
    """Each by the peak of its own device, without the optimizer's update; steps on a CPU do not count."""
    table = {
        "device": "cuda:0",
        "peak_tflops": 500.0,
        "seconds": {"ar": 1.25, "joint": 2.25},
        "update_seconds": 0.25,
        "operations": {"ar": 2.5e14, "joint": 4.5e14},
    }
    fast = {"ar": 1e15, "joint": 1e15}
    on_cpu = {"device": "cpu", "peak_tflops": 1.0, "seconds": table["seconds"], "operations": fast}
    unknown = {**table, "peak_tflops": None, "operations": fast}
    for name, figures in (("gpu", {"8b": table}), ("mixed", {"8b": {**on_cpu, "peak_tflops": None}, "3b": unknown})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": {"gpu": "A100"}, "figures": figures}))
    (tmp_path / "on_cpu.json").write_text(json.dumps({"machine": {"gpu": "A100"}, "figures": on_cpu}))
    (tmp_path / "cpu.json").write_text(json.dumps({"machine": {"cores": 2}, "figures": table}))
    (tmp_path / "half.json").write_text("{")
    (share, source), (joint, _) = (measured_utilisations(tmp_path)[kind] for kind in ("ar", "joint"))
    assert (share, joint) == (pytest.approx(0.5), pytest.approx(0.45))
    assert source == "measured on A100 (gpu.json: 8b)"
    assumed = assumptions({"joint_utilisation": 0.3}, tmp_path)
    assert (assumed.hardware.ar_utilisation, assumed.hardware.joint_utilisation) == (pytest.approx(0.5), 0.3)
    assert assumed.sources == {"ar": source, "joint": "given on the command line"}
    assert assumptions({}, tmp_path / "none").sources["ar"].startswith("not measured")


@pytest.mark.parametrize(
    "words",
    [["model=8b", "gpus=256"], ["model=14b", "gpus=64", "memory=80", "sequence_length=8192"], ["gpus=2", "memory=9"]],
)
def test_the_printed_overrides_are_a_run(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    from nld_train.model.dry_build import built_parameter_counts
    from nld_train.planner.buffers import chunk_weights

    assert main(words) == 0
    printed = capfd.readouterr().out
    overrides = shlex.split(printed.splitlines()[-1])
    config = compose_config([*overrides, "run.dry=build"])
    world = int(dict(word.split("=") for word in words)["gpus"])
    assert config.run.plan_world_size == world
    validate(config, world)
    weights = (chunk_weights(config.model, config.parallel, config.model.vocab_size, 0),)
    assert built_parameter_counts(config, world)[0] == sum(map(sum, weights[0]))
    assert "not measured" in printed


def test_json_holds_every_layout(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["model=3b", "gpus=8", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert {layout["fits"] for layout in plan["layouts"]} == {True, False}
    for layout in plan["layouts"]:
        memory = layout["memory"]
        lasting = memory["weights"] + memory["gradients"] + memory["optimizer"]
        assert memory["total"] == lasting + max(memory["activations"] + memory["head"], memory["saving"])


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["model=8b"], ["gpus: missing"]),
        (["gpus"], ["gpus: is no key=value"]),
        (["gpus=many"], ["gpus=many: must be a number"]),
        (["gpus=0"], ["gpus=0: must be at least 1"]),
        (["model=8b", "gpus=7"], ["batch.global_size=512: must be a multiple of 7"]),
        (["model=9b", "gpus=8"], ["model=9b: no such file", "8b"]),
        (["model=8b", "gpus=8", "batch.globl=3"], ["batch.globl: unknown key", "global_size"]),
        (["model=8b", "gpus=8", "hardware.nett=3"], ["hardware.nett: unknown key", "network"]),
        (["model=8b", "gpus=8", "hardware.bandwidth_share=2"], ["must be at most 1"]),
        (["model=14b", "gpus=8", "memory=30"], ["memory=30: none of", "the smallest needs 40.", "recompute=full"]),
        (["model=8b", "gpus=64", "parallel.tensor=3"], ["parallel.tensor=3: must divide"]),
    ],
)
def test_mistakes_are_one_line(words: list[str], pieces: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    for piece in pieces:
        assert piece in said.err


def test_a_stage_of_an_adapter_is_refused() -> None:
    with pytest.raises(UserError, match=r"run\.stages"):
        read_request(["gpus=8", "stages=drafter"])
