"""A sweep of `nld-train --multirun`: the names and folders of its jobs, and the table at its end."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from nld_train.config.schema import Config

FLAGS = {"-m", "--multirun"}
# Wide enough for every row, so that the table reads the same in a terminal, a pipe and a log file.
_WIDTH = 120
# Columns of the table, and the key of each in the last stage's entry of `summary.json`.
_LOSSES = {"AR loss": "last_ar_loss", "diffusion loss": "last_diffusion_loss"}


@dataclass(frozen=True)
class Ended:
    """A job of a sweep that has ended.

    Attributes:
        config: its settings.
        result: what became of it, in a few words.
    """

    config: Config
    result: str


def sweep_arguments(arguments: Sequence[str], override: str) -> list[str]:
    """The arguments of a sweep with one more override. Hydra's parser requires all overrides side by side."""
    words = [word for word in arguments if word not in FLAGS]
    first = next((index for index, word in enumerate(words) if "=" in word and word[0] != "-"), len(words))
    return ["--multirun", *words[:first], override, *words[first:]]


def named_job(config: Config) -> Config:
    """The settings with the job's own folder below `run.dir` and a name of its own, after the keys that a sweep varies.

    Outside a sweep they are unchanged.
    """
    name = _job_name()
    directory = os.path.join(config.run.dir, name).rstrip("/")
    return replace(config, run=replace(config.run, dir=directory, name=f"{config.run.name} {name}".rstrip()))


def _job_name() -> str:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return ""
    naming = settings.job.config.override_dirname
    naming_keys = _varied_keys() - set(naming.exclude_keys)
    pairs = (word.split("=", 1) for word in sorted(settings.overrides.task))
    name = naming.item_sep.join(f"{key}{naming.kv_sep}{value}" for key, value in pairs if key in naming_keys)
    # Only characters that need no quotes, in a shell or in a later override such as `init.checkpoint=...`.
    return re.sub(r"[^\w.+-]", "_", name)


def _varied_keys() -> set[str]:
    """Keys to which the command line gives several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [word for word in sys.argv[1:] if "=" in word and word[0] != "-"]
    overrides = OverridesParser.create().parse_overrides(words)
    return {word.partition("=")[0] for word, parsed in zip(words, overrides, strict=True) if parsed.is_sweep_override()}


def refuse_shared_directories(configs: Sequence[Config]) -> None:
    """Refuses a sweep two of whose jobs would write to one folder.

    Raises:
        UserError: names the folder.
    """
    directories = [config.run.dir for config in configs if not config.run.dry]
    for directory in directories:
        if directories.count(directory) > 1:
            raise UserError(f"run.dir={directory}: several jobs of the sweep would write there; sweep over other keys")


def print_jobs(ended: Sequence[Ended], jobs: int, console: Console | None = None) -> None:
    """Prints the table of a sweep: what became of each job, its steps and its last losses.

    Args:
        ended: its jobs, in order.
        jobs: how many there are, those that were not begun among them.
        console: where it is printed.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from nld_train.console import plain_console

    root = Path(os.path.commonpath([os.path.dirname(job.config.run.dir) or "." for job in ended]))
    table = Table(title=f"Jobs of the sweep, in {root}", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("job", overflow="fold")
    table.add_column("result", overflow="fold")
    for column in ("steps", *_LOSSES):
        table.add_column(column, justify="right", no_wrap=True)
    for job in ended:
        directory = Path(job.config.run.dir)
        table.add_row(os.path.relpath(directory, root), job.result, *_figures(directory))
    console = console or plain_console(width=_WIDTH)
    console.print(table)
    if len(ended) < jobs:
        console.print(f"{jobs - len(ended)} of {jobs} jobs were not begun")


def _figures(directory: Path) -> list[str]:
    """Steps and last losses of a job from its `summary.json`; empty where it has none."""
    from nld_train.outside_json import read_object

    try:
        stages: dict[str, Any] = read_object(directory / "summary.json")["stages"]
    except (UserError, KeyError):
        return [""] * (1 + len(_LOSSES))
    last: dict[str, Any] = next(reversed(stages.values()), {})
    losses = [last.get(key) for key in _LOSSES.values()]
    return [
        f"{sum(stage['steps'] for stage in stages.values()):,}",
        *("" if loss is None else f"{loss:.4f}" for loss in losses),
    ]
