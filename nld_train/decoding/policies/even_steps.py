"""Commit policy: a fixed number of denoising passes per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, from_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.policies.commit import BlockView

STEPS = Argument(
    name="steps",
    type=int,
    default=8,
    help="passes per block",
    metavar="N",
    lowest=1,
    phrase="{} denoising passes per block",
)


@dataclass(frozen=True)
class EvenSteps:
    """Spreads a block's masks evenly over `passes` passes, the most confident first.

    Raises:
        ValueError: fewer than one pass.
    """

    passes: int

    def __post_init__(self) -> None:
        STEPS.check(self.passes)

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return even_share(view, self.passes)


def even_share(view: BlockView, passes: Tensor | int) -> Tensor:
    """The most confident positions of each block, as many as complete it evenly in `passes` (int64 `[d]`) passes."""
    left = (passes - view.passes).clamp(min=1)
    return view.best(view.confidence, (view.masked.sum(1) + left - 1) // left)


DECLARATION = PolicyDeclaration(
    name="steps",
    summary="an even share of the block's masks per pass, so that a block takes N passes",
    arguments=(STEPS,),
    build=from_arguments(EvenSteps),
)
