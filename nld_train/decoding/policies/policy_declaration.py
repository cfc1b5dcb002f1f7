"""Declarations of commit policies: name, arguments with their ranges, and how to build one. Imports no torch.

Command lines, the evaluation harness and the table in `docs/decoding.md` are made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nld_train.decoding.engines.engine import Engine
    from nld_train.decoding.policies.commit import CommitPolicy

# Some policies read weights of the model, so a policy is built after the model is loaded.
PolicyOf = Callable[["Engine"], "CommitPolicy"]
Build = Callable[[Mapping[str, Any], Path], PolicyOf]


def option(name: str) -> str:
    """The option on a command line that sets a keyword."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Argument:
    """An argument of a commit policy.

    Attributes:
        name: the keyword; with dashes for underscores, the option on the command line.
        type: converts the text of a command line to a value.
        default: the value if none is given.
        help: its line in `--help`, without the default.
        metavar: the value's name in `--help`.
        lowest: smallest value; None for values without an order.
        highest: largest value; None for no limit.
        phrase: how an error message names a value, which replaces the `{}`.
    """

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    metavar: str
    lowest: float | None = None
    highest: float | None = None
    phrase: str = "{}"

    @property
    def option(self) -> str:
        """The option on a command line."""
        return option(self.name)

    def check(self, value: Any) -> None:
        """Refuses a value out of its range.

        Raises:
            ValueError: it is out of its range, or not a number.
        """
        if self.lowest is None or (self.lowest <= value and (self.highest is None or value <= self.highest)):
            return
        limits = f"{self.lowest} or more" if self.highest is None else f"in [{self.lowest}, {self.highest}]"
        raise ValueError(f"{self.name}: {self.phrase.format(value)} is not {limits}")


@dataclass(frozen=True)
class PolicyDeclaration:
    """The declaration of a commit policy.

    Attributes:
        name: value of `--policy`.
        summary: what a denoising pass commits, for `--help` and docs.
        arguments: in the order in which the policy takes them.
        build: from the arguments' values by name and the checkpoint's directory to a function that makes the policy for
            an engine; called before any weight is read. Raises UserError if the policy lacks a file that it needs.
        modes: decode modes with denoising passes.
        one_process: why it needs the whole model in one process; empty if it does not.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    build: Build
    modes: tuple[str, ...] = ("diffusion",)
    one_process: str = ""


def from_arguments(policy: Callable[..., CommitPolicy]) -> Build:
    """The `build` of a policy that is constructed from its arguments alone, in their order."""

    def build(values: Mapping[str, Any], checkpoint: Path) -> PolicyOf:
        del checkpoint
        made = policy(*values.values())
        return lambda engine: made

    return build
