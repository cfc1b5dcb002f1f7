"""AdamW with the interface of Apex's and Transformer Engine's FusedAdam, on torch's kernels, if neither is installed.

Megatron's distributed optimizer can move its state between layouts only if the number of steps is kept once per
parameter group, as FusedAdam does, and not once per parameter, as torch does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adam import adam


class GroupStepAdamW(torch.optim.AdamW):
    """torch's AdamW, with `step` in the parameter group instead of each parameter's state.

    Args:
        params: parameters or groups of them.
        adam_w_mode: decoupled weight decay, the only mode implemented here.
        **settings: `lr`, `betas`, `eps`, `weight_decay` as in `torch.optim.AdamW`.
    """

    def __init__(self, params: Any, adam_w_mode: bool = True, **settings: Any) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        super().__init__(params, **settings)
        for group in self.param_groups:
            group.setdefault("step", 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Not AdamW's own, which expects the step in each parameter's state.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "Megatron passes no closure"
        for group in self.param_groups:
            self._update(group)
            group["step"] += 1

    def _update(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self._state(parameter) for parameter in parameters]
        adam(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            # torch's kernel adds 1 before it uses this.
            [torch.tensor(float(group["step"])) for _ in parameters],
            foreach=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def provide_to_megatron() -> None:
    """Makes Megatron use this class if neither Transformer Engine nor Apex is installed; otherwise changes nothing."""
    import megatron.core.optimizer as megatron_optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed_optimizer

    if distributed_optimizer.HAVE_APEX_OR_TE:
        return
    megatron_optimizer.Adam = GroupStepAdamW
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    distributed_optimizer.Adam = GroupStepAdamW
    distributed_optimizer.HAVE_APEX_OR_TE = True
