"""From a request to its plans, the best first."""

from __future__ import annotations

from nld_train.config.validate import validate
from nld_train.errors import UserError
from nld_train.planner.hardware import Hardware
from nld_train.planner.layouts import every_layout, legal_layouts, override_words
from nld_train.planner.plan import LayoutPlan, plan_layout, recommended
from nld_train.planner.request import Request


def all_plans(request: Request, hardware: Hardware) -> list[LayoutPlan]:
    """Every legal layout, the best first; those that do not fit come last.

    Raises:
        UserError: no layout is legal, or none fits.
    """
    layouts = legal_layouts(request.config, request.choices)
    plans = recommended(plan_layout(config, request.choices, hardware, request.memory) for config in layouts)
    if not plans:
        # Raises the error of the simplest layout, which gives a reason.
        validate(next(every_layout(request.config, request.choices)), request.choices.gpus)
        raise UserError(
            f"gpus={request.choices.gpus}: no layout is legal; use another number, or do not set keys of parallel"
        )
    if not plans[0].fits:
        least = min(plans, key=lambda plan: plan.memory.total)
        need = hardware.needed_gibibytes(least.memory.total)
        raise UserError(
            f"memory={request.memory:g}: none of {len(plans)} legal layouts fits; the smallest needs {need:.1f} GiB "
            f"({' '.join(override_words(least.config))}); take more devices or a larger memory"
        )
    return plans
