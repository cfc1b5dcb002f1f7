"""Names of tasks, lists of them, and loading tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from nld_train.config.compose import config_directory
from nld_train.errors import UserError
from nld_train.evaluation.harness.settings import Likelihood

_NEAREST = 3


@dataclass(frozen=True)
class TaskList:
    """A file of `configs/evaluation/tasks/`.

    Attributes:
        tasks: their names in lm_eval.
        chat_template: whether prompts are formatted with the tokenizer's chat template.
        unsafe_code: whether a task runs code that the model wrote.
        max_new_tokens: maximum number of new tokens of a text; None for each task's.
        likelihood: by which diffusion scores choices, `ar` or `bound`; None for the mode's own.
    """

    tasks: tuple[str, ...]
    chat_template: bool = False
    unsafe_code: bool = False
    max_new_tokens: int | None = None
    likelihood: Likelihood | None = None


# What all lists of one evaluation must agree in.
_SETTINGS = [field.name for field in fields(TaskList) if field.name != "tasks"]


def shipped_lists() -> dict[str, TaskList]:
    """The lists by name."""
    folder = config_directory() / "evaluation" / "tasks"
    return {path.stem: _read_list(path) for path in sorted(folder.glob("*.yaml"))}


def _read_list(path: Path) -> TaskList:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return TaskList(**{**content, "tasks": tuple(content["tasks"])})


def resolve(words: Sequence[str]) -> TaskList:
    """One list of the named lists and single tasks; settings of the lists must agree.

    Raises:
        UserError: two lists that differ in a setting.
    """
    lists = shipped_lists()
    parts = [lists.get(word, TaskList((word,))) for word in words]
    named = [part for word, part in zip(words, parts, strict=True) if word in lists] or parts[:1]
    for key in _SETTINGS:
        if len({getattr(part, key) for part in named}) > 1:
            raise UserError(f"--tasks: the lists differ in {key}; evaluate them one after another")
    tasks = tuple(dict.fromkeys(name for part in parts for name in part.tasks))
    return TaskList(tasks, **{key: getattr(named[0], key) for key in _SETTINGS})


def load_tasks(names: Sequence[str], manager: Any) -> list[Any]:
    """Loads tasks by name, with their data.

    Args:
        names: of tasks, groups or tags.
        manager: lm_eval's `TaskManager`.

    Raises:
        UserError: an unknown name, with the nearest ones; a task whose data or packages are missing.
    """
    known = [*manager.all_tasks, *shipped_lists()]
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, _NEAREST, cutoff=0.5)
            raise UserError(
                f"--tasks: {name!r} is no task; "
                + (f"nearest: {', '.join(nearest)}" if nearest else "see lm-eval ls tasks, or name --include-path")
            )
    found: list[Any] = []
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # of any kind: from a task's own code and its data set
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(f"--tasks: {name} cannot be loaded ({type(error).__name__}: {reason})") from error
        found += _top(loaded)
    return found


def _top(loaded: dict[str, Any]) -> list[Any]:
    """The groups that are in no other group, and the tasks that are in no group."""
    groups = loaded.get("groups", {})
    inner = {child for children in loaded.get("group_map", {}).values() for child in children}
    inside = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    tops = [group for name, group in groups.items() if name not in inner]
    return [*tops, *(task for name, task in loaded["tasks"].items() if name not in inside)]
