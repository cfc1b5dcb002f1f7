"""Steps: commands with one output, that depend on other steps, and that are known by what they do.

A step's identity is a hash of its command lines and of the steps that it depends on. What is added to the program later
changes no identity, so that finished steps stay finished.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Words = tuple[str, ...]
_ENDINGS = {"measured": ".json", "prompts": ".jsonl"}


@dataclass(frozen=True)
class Step:
    """One or several command lines, run one after another.

    Attributes:
        label: what it is, in a file name.
        output: `data`, `runs` (a folder that a training fills, which goes on where it stopped), `prompts` (JSONL) or
            `measured` (a JSON).
        commands: arguments of `python -m`. `{own}` is the path of the output, `{0}`, `{1}`, .. those of `after`.
        after: the steps whose outputs it reads.
    """

    label: str
    output: str
    commands: tuple[Words, ...]
    after: tuple[Step, ...] = ()

    @cached_property
    def identity(self) -> str:
        """The same for the same commands on the same inputs, whatever the label."""
        content = json.dumps([self.output, self.commands, [step.identity for step in self.after]])
        return hashlib.sha256(content.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.label}-{self.identity}"

    def path(self, folder: Path) -> Path:
        """The output."""
        return folder / self.output / f"{self.name}{_ENDINGS.get(self.output, '')}"

    def record(self, folder: Path) -> Path:
        """The file that says that the step is finished."""
        return folder / "steps" / f"{self.name}.json"

    def finished(self, folder: Path) -> bool:
        """Whether it is."""
        return self.record(folder).exists()

    def command_lines(self, folder: Path) -> list[list[str]]:
        """The commands with the paths that they name."""
        paths = {f"{{{index}}}": str(step.path(folder)) for index, step in enumerate(self.after)}
        paths["{own}"] = str(self.path(folder))
        return [[_with_paths(word, paths) for word in command] for command in self.commands]


def _with_paths(word: str, paths: dict[str, str]) -> str:
    for name, path in paths.items():
        word = word.replace(name, path)
    return word


def in_order(wanted: list[Step]) -> list[Step]:
    """The steps and all that they depend on, each once, after those that it depends on, else in this order."""
    found: dict[str, Step] = {}

    def add(step: Step) -> None:
        for before in step.after:
            add(before)
        found.setdefault(step.identity, step)

    for step in wanted:
        add(step)
    return list(found.values())
