"""Commit policy: a fixed number of positions per pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, from_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.policies.commit import BlockView

NUMBER = Argument(
    name="number",
    type=int,
    default=1,
    help="tokens per pass",
    metavar="N",
    lowest=1,
    phrase="{} positions per pass",
)


@dataclass(frozen=True)
class FixedNumber:
    """Commits the `number` most confident positions per pass; 1 is one-token-per-pass decoding.

    Raises:
        ValueError: fewer than one.
    """

    number: int = 1

    def __post_init__(self) -> None:
        NUMBER.check(self.number)

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return view.best(view.confidence, self.number)


DECLARATION = PolicyDeclaration(
    name="number",
    summary="the N most confident positions per pass (1 is one token per pass)",
    arguments=(NUMBER,),
    build=from_arguments(FixedNumber),
)
