"""The commit policies that command lines and the evaluation harness offer. Imports no torch.

A new policy is one file with a class and its `DECLARATION`, and one entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nld_train.decoding.policies import entropy, even_steps, fixed_number, threshold, trained_sampler
from nld_train.decoding.policies.policy_declaration import Argument, PolicyDeclaration, PolicyOf
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
    """A commit policy and its arguments as chosen by the user.

    Attributes:
        name: key of `POLICIES`.
        values: values of the arguments of all policies, by name.

    Raises:
        ValueError: an unknown policy, or a value out of its range.
    """

    name: str = DEFAULT
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise ValueError(f"policy: {self.name!r} is not one of {', '.join(POLICIES)}")
        arguments = policy_arguments()
        values = {name: self.values.get(name, argument.default) for name, argument in arguments.items()}
        object.__setattr__(self, "values", values)
        for name, argument in arguments.items():
            argument.check(values[name])

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> PolicySettings:
        """From parsed arguments or keywords: `policy` and the policies' arguments; other keys are ignored."""
        return cls(settings.get("policy", DEFAULT), settings)

    @property
    def declaration(self) -> PolicyDeclaration:
        """The declaration of the chosen policy."""
        return POLICIES[self.name]

    def record(self) -> dict[str, Any]:
        """The settings as keywords, the inverse of `of`."""
        return {"policy": self.name, **self.values}

    def check_mode(self, mode: str) -> None:
        """Refuses a policy or an argument of one in a mode that has no denoising passes.

        Raises:
            UserError: one of them differs from its default.
        """
        modes = self.declaration.modes
        if mode in modes:
            return
        given = ["policy"] if self.name != DEFAULT else []
        for name in [*given, *self._given()]:
            reader = " and ".join(modes)
            raise UserError(f"{_option(name)}: mode {mode!r} has no denoising passes; only {reader} reads it")

    def build(self, checkpoint: Path, processes: int) -> PolicyOf:
        """A function that makes the policy for an engine.

        Args:
            checkpoint: directory of the checkpoint.
            processes: number of processes that share the model.

        Raises:
            UserError: an argument of another policy, several processes for a policy that needs the whole model, or what
                the policy's `build` refuses.
        """
        for name in self._given():
            if name not in {argument.name for argument in self.declaration.arguments}:
                readers = [one.name for one in POLICIES.values() if name in {each.name for each in one.arguments}]
                raise UserError(
                    f"{_option(name)}: the policy {self.name!r} does not read it; add --policy {' or '.join(readers)}"
                )
        if processes > 1 and self.declaration.one_process:
            reason = self.declaration.one_process
            raise UserError(f"--policy {self.name}: {reason}; use --tensor 1 and --pipeline 1")
        values = {argument.name: self.values[argument.name] for argument in self.declaration.arguments}
        return self.declaration.build(values, checkpoint)

    def _given(self) -> list[str]:
        """Names of the arguments that differ from their defaults and must be read by the policy."""
        return [
            name
            for name, argument in policy_arguments().items()
            if not argument.ignorable and self.values[name] != argument.default
        ]


def _option(name: str) -> str:
    return "--policy" if name == "policy" else policy_arguments()[name].option
