"""Commit policy: a threshold on the model's confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, from_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.policies.commit import BlockView

THRESHOLD = Argument(
    name="threshold",
    type=float,
    default=0.9,
    help="diffusion commits tokens that are at least this probable",
    metavar="P",
    lowest=0,
    highest=1,
)


@dataclass(frozen=True)
class Threshold:
    """Commits positions with at least this confidence, and always the most confident one.

    From the same state a lower threshold commits a superset; 0 commits the whole block in one pass.

    Raises:
        ValueError: a threshold outside [0, 1].
    """

    threshold: float

    def __post_init__(self) -> None:
        THRESHOLD.check(self.threshold)

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return (view.confidence >= self.threshold) | view.best(view.confidence, 1)


DECLARATION = PolicyDeclaration(
    name="threshold",
    summary="every position with at least that confidence, and the most confident one (0 takes one pass per block)",
    arguments=(THRESHOLD,),
    build=from_arguments(Threshold),
)
