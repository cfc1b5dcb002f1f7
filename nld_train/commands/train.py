"""The command `nld-train`, also `python -m nld_train.train`: compose the settings, check them, run or plan.

Only the standard library is imported at the top: a dry run never imports torch, and the worker processes that torch
starts for saving import this module again. It reports errors and exits as every command does (`command.py`), though
Hydra parses its arguments.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from nld_train.errors import INTERRUPT_STATUS, USER_ERROR_STATUS, UserError, report_error, system_error
from nld_train.processes import rank

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nld_train.config.schema import Config

_SWEEP_FLAGS = {"-m", "--multirun"}


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        words: its arguments (default: those of this process).

    Returns:
        The exit status: 0; 2 after one line about an error that a user caused; 130 after Ctrl-C; 75 where a signal
        ended a run (`nld_train.training.loop.signals`).
    """
    try:
        with _command_line(sys.argv[1:] if words is None else words):
            jobs = _read_jobs()
        # Outside Hydra, so that a failure's traceback is the program's own.
        return _run_jobs(jobs)
    except UserError as error:
        # Every process reads the same settings and finds the same error.
        return report_error(str(error), every_rank=False)
    except OSError as error:  # such as a full disk, where a sweep has its record
        return report_error(system_error(error))
    except KeyboardInterrupt:
        return report_error("interrupted", INTERRUPT_STATUS, every_rank=False)


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Sets the arguments that Hydra reads."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        yield
    finally:
        sys.argv = before


def _run_jobs(jobs: list[tuple[Config, int]]) -> int:
    """Runs one after another. A failed job does not stop a sweep; a signal, which is sent to the process, does."""
    highest = 0
    for config, world_size in jobs:
        status = _run_job(config, world_size)
        if status > USER_ERROR_STATUS:
            # Launchers signal again, and a second one must not turn the exit code of a saved run into that of a kill.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            return status
        highest = max(highest, status)
    return highest


def _read_jobs() -> list[tuple[Config, int]]:
    """The settings of every job of the command line, all checked before the first one starts."""
    # Otherwise Hydra prints errors over many lines and exits by itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not _SWEEP_FLAGS & set(sys.argv):
        return _compose_jobs()
    # Hydra requires a folder for its record of a sweep.
    with (
        tempfile.TemporaryDirectory(prefix="nld-train-") as scratch,
        _command_line(_sweep_arguments(sys.argv[1:], f"hydra.sweep.dir={scratch}")),
    ):
        jobs = _compose_jobs()
    _refuse_shared_directories([config for config, _ in jobs])
    return jobs


def _sweep_arguments(arguments: Sequence[str], override: str) -> list[str]:
    """The arguments of a sweep with one more override. Hydra's parser requires all overrides side by side."""
    words = [word for word in arguments if word not in _SWEEP_FLAGS]
    first = next((index for index, word in enumerate(words) if "=" in word and word[0] != "-"), len(words))
    return ["--multirun", *words[:first], override, *words[first:]]


def _compose_jobs() -> list[tuple[Config, int]]:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from nld_train.config.compose import ROOT_NAME, composition_message, config_directory

    jobs: list[tuple[Config, int]] = []
    errors: list[UserError] = []

    def read(composed: DictConfig) -> None:
        try:
            jobs.append(_read(composed))
        except UserError as error:  # Raised from here, Hydra would print a line of its own.
            errors.append(error)

    try:
        with _parser_errors_as_user_errors():
            hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=ROOT_NAME)(read)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_message(error)) from error
    if errors:
        raise errors[0]
    return jobs


@contextmanager
def _parser_errors_as_user_errors() -> Iterator[None]:
    """Hydra makes its parser itself, and argparse prints the usage and exits."""

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{message} (see nld-train --help)")

    before = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = before  # type: ignore[method-assign]


def _refuse_shared_directories(configs: list[Config]) -> None:
    directories = [config.run.dir for config in configs if not config.run.dry]
    for directory in directories:
        if directories.count(directory) > 1:
            raise UserError(f"run.dir={directory}: several jobs of the sweep would write there; sweep over other keys")


def _run_job(config: Config, world_size: int) -> int:
    try:
        return _start(config, world_size)
    except UserError as error:
        return report_error(str(error))
    except OSError as error:
        return report_error(system_error(error))


def _read(composed: DictConfig) -> tuple[Config, int]:
    """The checked settings and the number of processes they are for."""
    from nld_train.config.load import load_config
    from nld_train.config.validate import validate

    config = load_config(composed)
    config = replace(config, run=replace(config.run, dir=_run_directory(config)))
    world_size = int(os.environ.get("WORLD_SIZE", config.run.plan_world_size if config.run.dry else 1))
    validate(config, world_size)
    return config, world_size


def _run_directory(config: Config) -> str:
    """The job's own folder below `run.dir` in a sweep, named after the keys that the sweep varies; else `run.dir`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return config.run.dir
    naming = settings.job.config.override_dirname
    naming_keys = _varied_keys() - set(naming.exclude_keys)
    pairs = (word.split("=", 1) for word in sorted(settings.overrides.task))
    name = naming.item_sep.join(f"{key}{naming.kv_sep}{value}" for key, value in pairs if key in naming_keys)
    # Only characters that need no quotes, in a shell or in a later override such as `init.checkpoint=...`.
    return os.path.join(config.run.dir, re.sub(r"[^\w.+-]", "_", name)).rstrip("/")


def _varied_keys() -> set[str]:
    """Keys to which the command line gives several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [word for word in sys.argv[1:] if "=" in word and word[0] != "-"]
    overrides = OverridesParser.create().parse_overrides(words)
    return {word.partition("=")[0] for word, parsed in zip(words, overrides, strict=True) if parsed.is_sweep_override()}


def _start(config: Config, world_size: int) -> int:
    """Print the plan, build the model on the meta device, or train."""
    if config.run.dry and rank() != 0:  # rank 0 plans for all
        return 0
    if config.run.dry is True:
        from nld_train.config.report import print_plan

        print_plan(config, world_size)
        return 0
    from nld_train.library_warnings import ignore_known_warnings

    ignore_known_warnings()
    if config.run.dry == "build":
        from nld_train.model.dry_build import build_plan

        return build_plan(config) or 0
    from nld_train.training.loop.run import train

    return train(config)


if __name__ == "__main__":
    sys.exit(main())
