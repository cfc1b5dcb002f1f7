"""The rehearsal's own test: each copy to the device, left out of a training step, is an error of the run."""

from __future__ import annotations

from typing import Any

import torch
from pretended import CudaTensor, install
from pretended.ledger import caller
from rehearsals import train


class _Forgetting:
    """`Tensor.to`, which for one caller leaves tensors on the CPU; notes the callers in training steps that copy.

    Callers are `file:line function`.
    """

    def __init__(self) -> None:
        self.callers: dict[str, None] = {}
        self.left_out: str | None = None
        self._in_step = False

    def install(self) -> None:
        """Replaces the pretended device's `Tensor.to` and wraps the steps of runs."""
        from nld_train.training.loop.run import Run

        to, step, forgetting = torch.Tensor.to, Run._step, self

        def forgetful(tensor: Any, *arguments: Any, **named: Any) -> Any:
            moved = to(tensor, *arguments, **named)
            if not forgetting._in_step or isinstance(tensor, CudaTensor) or not isinstance(moved, CudaTensor):
                return moved
            forgetting.callers[caller()] = None
            return moved.inner if caller() == forgetting.left_out else moved

        def watched(*arguments: Any) -> Any:
            forgetting._in_step = True
            try:
                return step(*arguments)
            finally:
                forgetting._in_step = False

        patched: Any = torch.Tensor
        patched.to = forgetful
        steps: Any = Run
        steps._step = watched


def outcomes(folder: str, overrides: list[str]) -> dict[str, str]:
    """By caller: the error of the run that leaves out its copies."""
    from nld_train.model.attention.flex import clear_masks

    install()
    forgetting = _Forgetting()
    forgetting.install()
    train("cuda", f"{folder}/whole", overrides)
    found = {}
    for number, where in enumerate(list(forgetting.callers)):
        forgetting.left_out, found[where] = where, ""
        clear_masks()  # of the run before, which has the same samples
        try:
            train("cuda", f"{folder}/{number}", overrides)
        except (RuntimeError, TypeError) as error:
            found[where] = str(error)
    return found
