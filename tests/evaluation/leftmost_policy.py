"""A commit policy that the project does not have: what a user adds is one file like this and one registry entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, from_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from nld_train.decoding.policies.commit import BlockView

ITS_ARGUMENT = Argument(
    name="its_argument", type=int, default=1, help="leftmost masks per pass", metavar="N", lowest=1, highest=100
)


@dataclass(frozen=True)
class Leftmost:
    """Commits the leftmost masked positions, so many per pass."""

    number: int

    def choose(self, view: BlockView) -> Tensor:
        """See `CommitPolicy`."""
        return view.masked.cumsum(1) <= self.number


DECLARATION = PolicyDeclaration(
    name="dummy", summary="the leftmost positions", arguments=(ITS_ARGUMENT,), build=from_arguments(Leftmost)
)
