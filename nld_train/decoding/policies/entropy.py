"""Commit policy: bounds the entropy of the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, from_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.policies.commit import BlockView

BOUND = Argument(
    name="entropy",
    type=float,
    default=0.3,
    help="most nats",
    metavar="H",
    lowest=0,
    phrase="an entropy of {} nats",
)


@dataclass(frozen=True)
class Entropy:
    """Commits positions whose prediction has at most this entropy in nats, and always the one with the lowest.

    Raises:
        ValueError: a negative bound.
    """

    bound: float
    figures: ClassVar[tuple[str, ...]] = ("entropy",)

    def __post_init__(self) -> None:
        BOUND.check(self.bound)

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return (view.entropy <= self.bound) | view.best(-view.entropy, 1)


DECLARATION = PolicyDeclaration(
    name="entropy",
    summary="every prediction of at most that entropy, and the one with the lowest",
    arguments=(BOUND,),
    build=from_arguments(Entropy),
)
