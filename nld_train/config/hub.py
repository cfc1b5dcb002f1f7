"""Names of models on the Hugging Face Hub in settings: `hub:ORG/NAME`, or `hub:ORG/NAME@REVISION`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nld_train.errors import UserError

PREFIX = "hub:"
# Of an account or a model, as the Hub allows them.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_REFERENCE = re.compile(rf"({_REPOSITORY.pattern})(?:@([\w./-]+))?")


@dataclass(frozen=True)
class HubModel:
    """A model repository on the Hub.

    Attributes:
        repository: `ORG/NAME`.
        revision: a branch, a tag or a commit; None for the default branch.
    """

    repository: str
    revision: str | None

    def __str__(self) -> str:
        """As it is written in a setting."""
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def hub_model(value: str, key: str) -> HubModel | None:
    """The repository that a setting names; None for a path.

    Args:
        value: of the setting.
        key: of it, for the message.

    Raises:
        UserError: it begins with `hub:` and names no repository.
    """
    if not value.startswith(PREFIX):
        return None
    found = _REFERENCE.fullmatch(value.removeprefix(PREFIX))
    if found is None:
        raise UserError(f"{key}={value}: must be hub:ORG/NAME, or hub:ORG/NAME@REVISION")
    return HubModel(found[1], found[2])


def check_repository(name: str, what: str) -> None:
    """Refuses what is no name of a repository.

    Args:
        name: from a user.
        what: names it in the message.

    Raises:
        UserError: it is not `ORG/NAME`.
    """
    if not _REPOSITORY.fullmatch(name):
        raise UserError(f"{what}: must be ORG/NAME, an account and a model on the Hugging Face Hub")
