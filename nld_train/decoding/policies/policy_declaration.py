"""How a commit policy describes itself: name, arguments with their ranges, and how it is built. Imports no torch.

Command lines, the evaluation harness and the table in `docs/decoding.md` are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nld_train.decoding.engines.engine import Engine
    from nld_train.decoding.policies.commit import CommitPolicy

# Some policies read weights of the model, so that they can only be made once it is loaded.
PolicyOf = Callable[["Engine"], "CommitPolicy"]
Build = Callable[[Mapping[str, Any], Path], PolicyOf]


@dataclass(frozen=True)
class Argument:
    """An argument of a commit policy.

    Attributes:
        name: the keyword; `--its-name` on the command line.
        type: makes a value of the text on a command line.
        default: the value where none is given.
        help: its line in `--help`, without the default.
        metavar: the value's name in `--help`.
        lowest: least value; None for values without an order.
        highest: greatest value; None for no limit.
        phrase: how an error message names a value, which replaces the `{}`.
        ignorable: whether the argument, given with a policy or mode that does not use it, is ignored. Others are
            refused.
    """

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    metavar: str
    lowest: float | None = None
    highest: float | None = None
    phrase: str = "{}"
    ignorable: bool = False

    @property
    def option(self) -> str:
        """On a command line."""
        return "--" + self.name.replace("_", "-")

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
    """A commit policy as users choose it.

    Attributes:
        name: of `--policy`.
        summary: what a denoising pass commits, for `--help` and docs.
        arguments: in the order in which the policy takes them.
        build: from the values of the arguments by name and the directory of the checkpoint to the policy of an engine;
            called before any weight is read. Raises UserError where the policy lacks something.
        modes: decode modes with denoising passes.
        one_process: why it needs the whole model in one process; empty where it does not.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    build: Build
    modes: tuple[str, ...] = ("diffusion",)
    one_process: str = ""


def from_arguments(policy: Callable[..., CommitPolicy]) -> Build:
    """The `build` of a policy that is made from its arguments alone, in their order."""

    def build(values: Mapping[str, Any], checkpoint: Path) -> PolicyOf:
        del checkpoint
        made = policy(*values.values())
        return lambda engine: made

    return build
