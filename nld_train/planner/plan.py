"""A layout with its memory, speed and duration, and the order in which layouts are recommended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nld_train.config.counts import step_flops
from nld_train.config.plan import stage_plans, tokens_per_step
from nld_train.config.schema import Config
from nld_train.planner.hardware import Hardware
from nld_train.planner.layouts import Choices
from nld_train.planner.memory import Memory, largest_memory
from nld_train.planner.step_time import StepTime, step_time
from nld_train.planner.trained import Trained

_SECONDS_PER_DAY = 86400


@dataclass(frozen=True)
class LayoutPlan:
    """One layout.

    Attributes:
        config: the settings with it.
        memory: of the process that needs the most.
        fits: whether that is within a device's memory (`Hardware.fits`).
        steps: time of a step, by stage of the run.
        utilisation: FLOP utilisation by stage (`docs/method.md`, "Evaluation figures": recomputation does not count).
        tokens_per_second: per device, by stage.
        exposed: fraction of the run in which processes wait for communication.
        days: of the whole run.
    """

    config: Config
    memory: Memory
    fits: bool
    steps: dict[str, StepTime]
    utilisation: dict[str, float]
    tokens_per_second: dict[str, float]
    exposed: float
    days: float


def plan_layout(config: Config, choices: Choices, hardware: Hardware, device_gibibytes: float) -> LayoutPlan:
    """Memory, speed and duration of one layout."""
    memory = largest_memory(config, choices.gpus)
    steps, utilisation, speed = {}, {}, {}
    seconds = exposed = 0.0
    for plan in stage_plans(config):
        time = step_time(config, choices.gpus, plan.kind, hardware, choices.node_size, Trained.of(plan.stage))
        flops = step_flops(config, plan.stage) / choices.gpus
        steps[plan.name] = time
        utilisation[plan.name] = flops / time.total / (hardware.peak_tflops * 1e12)
        speed[plan.name] = tokens_per_step(config) / time.total / choices.gpus
        seconds += plan.steps * time.total
        exposed += plan.steps * time.exposed
    fits = hardware.fits(memory.total, device_gibibytes)
    return LayoutPlan(config, memory, fits, steps, utilisation, speed, exposed / seconds, seconds / _SECONDS_PER_DAY)


def recommended(plans: Iterable[LayoutPlan]) -> list[LayoutPlan]:
    """Layouts that fit come first; then the shortest run; then the least memory; then the smallest product of sizes.

    Days are compared to three digits: the count is not more precise than that.
    """

    def key(plan: LayoutPlan) -> tuple[bool, float, int, int]:
        parallel = plan.config.parallel
        sizes = parallel.tensor * parallel.context * parallel.pipeline * (parallel.virtual_pipeline or 1)
        return not plan.fits, float(f"{plan.days:.3g}"), plan.memory.total, sizes

    return sorted(plans, key=key)
