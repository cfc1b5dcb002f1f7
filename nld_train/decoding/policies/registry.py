"""The commit policies that command lines and the evaluation harness offer. Imports no torch.

A new policy is one file with a class and its `DECLARATION`, and one entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nld_train.decoding.policies import entropy, even_steps, fixed_number, threshold, trained_sampler
from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, PolicyOf, option
from nld_train.errors import UserError

DEFAULT = threshold.DECLARATION.name
POLICIES: dict[str, PolicyDeclaration] = {
    declaration.name: declaration
    for declaration in (
        threshold.DECLARATION,
        fixed_number.DECLARATION,
        even_steps.DECLARATION,
        entropy.DECLARATION,
        trained_sampler.DECLARATION,
    )
}


def policy_arguments() -> dict[str, Argument]:
    """The arguments of all policies by name; policies share an argument by declaring the same object."""
    found: dict[str, Argument] = {}
    for declaration in POLICIES.values():
        for argument in declaration.arguments:
            assert found.setdefault(argument.name, argument) is argument, f"{argument.name} is declared twice"
    return found


@dataclass(frozen=True)
class PolicySettings:
    """A commit policy and its arguments as given by the user.

    Attributes:
        given: key of `POLICIES`; None if no policy was given, which means the default one.
        values: values of the arguments that were given, by name, of whatever policy.

    Raises:
        ValueError: an unknown policy, or a value out of its range.
    """

    given: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ValueError(f"policy: {self.name!r} is not one of {', '.join(POLICIES)}")
        for name, value in self.values.items():
            policy_arguments()[name].check(value)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> PolicySettings:
        """From parsed arguments or keywords: `policy` and the policies' arguments, None where one was not given.

        Other keys are ignored.
        """
        given = {name: settings[name] for name in policy_arguments() if settings.get(name) is not None}
        return cls(settings.get("policy"), given)

    @property
    def name(self) -> str:
        """Key of `POLICIES`."""
        return DEFAULT if self.given is None else self.given

    @property
    def declaration(self) -> PolicyDeclaration:
        """The declaration of the chosen policy."""
        return POLICIES[self.name]

    @property
    def arguments(self) -> dict[str, Any]:
        """Values of the chosen policy's arguments by name, with the defaults of those that were not given."""
        return {one.name: self.values.get(one.name, one.default) for one in self.declaration.arguments}

    def record(self) -> dict[str, Any]:
        """The settings as keywords, the inverse of `of`."""
        return {"policy": self.given, **{name: self.values.get(name) for name in policy_arguments()}}

    def build(self, checkpoint: Path, processes: int) -> PolicyOf:
        """A function that makes the policy for an engine.

        Args:
            checkpoint: directory of the checkpoint.
            processes: number of processes that share the model.

        Raises:
            UserError: an argument of another policy, several processes for a policy that needs the whole model, or what
                the policy's `build` refuses.
        """
        for name in self.values:
            if name not in self.arguments:
                readers = [one.name for one in POLICIES.values() if name in {each.name for each in one.arguments}]
                raise UserError(
                    f"{option(name)}: the policy {self.name!r} does not read it; add --policy {' or '.join(readers)}"
                )
        if processes > 1 and self.declaration.one_process:
            reason = self.declaration.one_process
            raise UserError(f"--policy {self.name}: {reason}; use --tensor 1 and --pipeline 1")
        return self.declaration.build(self.arguments, checkpoint)
