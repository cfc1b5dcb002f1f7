"""Plans as a table, their assumptions, and the best one as overrides."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nld_train.config.counts import parameter_count
from nld_train.config.plan import data_parallel_size, stage_plans
from nld_train.console import plain_console
from nld_train.planner.hardware import GIBIBYTE, Assumptions
from nld_train.planner.layouts import override_words
from nld_train.planner.plan import LayoutPlan
from nld_train.planner.request import Request

# Wide enough for every row, so that a plan reads the same in a terminal, a pipe and a log file.
_WIDTH = 160


def show(request: Request, plans: Sequence[LayoutPlan], assumed: Assumptions) -> None:
    """Prints the best plans, their assumptions, and the first one as a line of overrides."""
    console = plain_console(width=_WIDTH)
    config, gpus = request.config, request.choices.gpus
    fitting = sum(plan.fits for plan in plans)
    console.print(
        f"{config.model.name}: {parameter_count(config.model) / 1e9:.2f}B parameters on {gpus:,} devices of "
        f"{request.memory:g} GiB; {len(plans):,} legal layouts, {fitting:,} fit; the best {min(request.rows, fitting)}:"
    )
    console.print(_table(request, [plan for plan in plans if plan.fits][: request.rows]))
    for line in (*_own_layout(request, plans), *assumption_lines(request, assumed)):
        console.print(line)
    console.print("\nThe first of them:")
    # Not through the console, which would wrap it.
    print(override_line(request, plans[0]))


def override_line(request: Request, plan: LayoutPlan) -> str:
    """Words for `nld-train`: those of the request, and the layout."""
    given = [word for word in request.words if word.split("=", 1)[0] not in request.choices.fixed]
    return shlex.join([*given, *override_words(plan.config), f"run.plan_world_size={request.choices.gpus}"])


def _table(request: Request, plans: Sequence[LayoutPlan]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    stages = [plan.name for plan in stage_plans(request.config)]
    layout = ("TP", "CP", "PP", "VP", "DP", "SP", "micro", "recompute")
    memory = ("weights", "grads", "state", "activ.", "head", "GiB")
    speed = [f"{stage} {what}" for stage in stages for what in ("s", "tok/s", "MFU")]
    for column in (*layout, *memory, *speed, "comm.", "days"):
        table.add_column(column, justify="right", no_wrap=True)
    for plan in plans:
        shown = (*_layout(request, plan), *_memory(plan), *_speed(plan, stages))
        table.add_row(*shown, f"{plan.exposed:.0%}", f"{plan.days:.1f}")
    return table


def _own_layout(request: Request, plans: Sequence[LayoutPlan]) -> list[str]:
    """What the settings would be without a plan, where that is a legal layout: an experiment's own, say."""
    own = override_words(request.config)
    found = [(number, plan) for number, plan in enumerate(plans, start=1) if override_words(plan.config) == own]
    return [
        f"Number {number} is the layout of the settings themselves ({' '.join(word.split('.')[1] for word in own)}): "
        f"{plan.memory.total / GIBIBYTE:.1f} GiB{'' if plan.fits else ', which does not fit'}, {plan.exposed:.0%} in "
        f"communication, {plan.days:.1f} days."
        for number, plan in found
    ]


def _layout(request: Request, plan: LayoutPlan) -> list[str]:
    parallel, batch = plan.config.parallel, plan.config.batch
    size = data_parallel_size(plan.config, request.choices.gpus)
    virtual = str(parallel.virtual_pipeline or "-")
    sequence = "on" if parallel.sequence else "-"
    sizes = [str(part) for part in (parallel.tensor, parallel.context, parallel.pipeline)]
    return [*sizes, virtual, str(size), sequence, str(batch.micro_size), plan.config.execution.recompute]


def _memory(plan: LayoutPlan) -> list[str]:
    memory = plan.memory
    terms = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.head, memory.total)
    return [f"{term / GIBIBYTE:.1f}" for term in terms]


def _speed(plan: LayoutPlan, stages: Sequence[str]) -> list[str]:
    shown = []
    for stage in stages:
        speed = (f"{plan.steps[stage].total:.2f}", f"{plan.tokens_per_second[stage]:,.0f}")
        shown += [*speed, f"{plan.utilisation[stage]:.0%}"]
    return shown


def assumption_lines(request: Request, assumed: Assumptions) -> list[str]:
    """The assumptions behind the figures, in words."""
    hardware = assumed.hardware
    return [
        f"Memory: the largest of any process in any stage; {hardware.memory_reserve:g} GiB are reserved for what is "
        f"not counted, and {hardware.memory_margin:.0%} of the count for its error. tok/s are per device, s per "
        "optimizer step; comm.: share of the time in communication that nothing hides.",
        f"AR utilisation {hardware.ar_utilisation:.0%}: {assumed.sources['ar']}.",
        f"Joint utilisation {hardware.joint_utilisation:.0%}: {assumed.sources['joint']}.",
        f"Not measured: NVLink {hardware.nvlink:g} and network {hardware.network:g} GB/s per device and direction, of "
        f"which transfers reach {hardware.bandwidth_share:.0%}; {request.choices.node_size} devices per node; "
        f"{hardware.tensor_overlap:.0%} of tensor-parallel communication hidden.",
    ]


def as_json(request: Request, plans: Sequence[LayoutPlan], assumed: Assumptions) -> dict[str, Any]:
    """Every layout, the best first, as plain values; memory in bytes, times in seconds."""
    return {
        "gpus": request.choices.gpus,
        "assumptions": asdict(assumed),
        "layouts": [
            {
                "overrides": override_line(request, plan),
                "fits": plan.fits,
                "memory": asdict(plan.memory) | {"total": plan.memory.total},
                "steps": {name: asdict(step) | {"total": step.total} for name, step in plan.steps.items()},
                "utilisation": plan.utilisation,
                "tokens_per_second_per_device": plan.tokens_per_second,
                "exposed_communication": plan.exposed,
                "days": plan.days,
            }
            for plan in plans
        ],
    }
