"""The command `nld-train`, also `python -m nld_train.train`: compose the settings, check them, run or plan.

Only the standard library is imported at the top: a dry run never imports torch, and the worker processes that torch
starts for saving import this module again. It reports errors and exits as every command does (`command.py`), though
Hydra parses its arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from nld_train.commands.launched_sweep import launch_jobs, launcher_of, without_launcher
from nld_train.commands.sweep import FLAGS, Ended, named_job, print_jobs, refuse_shared_directories, sweep_arguments
from nld_train.cuda_connections import set_connections
from nld_train.errors import USER_ERROR_STATUS, UserError, exit_status, report_error, system_error
from nld_train.output import OutputError, output_not_required
from nld_train.processes import rank
from nld_train.startup import nothing_to_save_yet

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nld_train.config.schema import Config


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        words: its arguments (default: those of this process).

    Returns:
        The exit status: 0; 2 after one line about an error that a user caused; 75 or 130 after a signal
        (`nld_train.startup`, `nld_train.training.loop.signals`).
    """
    with nothing_to_save_yet():
        # Every process reads the same settings and finds the same error.
        return exit_status(lambda: _run(sys.argv[1:] if words is None else words), every_rank=False)


def _run(words: Sequence[str]) -> int:
    if "--version" in words:
        from nld_train.revision import version_line

        print(version_line())
        return 0
    launcher = launcher_of(words)
    with _command_line(words if launcher is None else without_launcher(words)):
        jobs = _read_jobs()
    if launcher is not None:
        return _launch(words, jobs)
    # Outside Hydra, so that a failure's traceback is the program's own.
    return _run_jobs(jobs, sweep=bool(FLAGS & set(words)))


def _launch(words: Sequence[str], jobs: list[tuple[Config, int]]) -> int:
    """Has the jobs of a sweep started by Hydra's launcher, each in a process of its own."""
    ended = launch_jobs(words, [config for config, _ in jobs], _run_composed)
    print_jobs([job for _, job in ended], len(jobs))
    return max(status for status, _ in ended)


def _run_composed(composed: DictConfig) -> tuple[int, str]:
    """Runs a job in the process that a launcher has started."""
    try:
        config, world_size = _read(composed)
    except UserError as error:
        return report_error(str(error)), f"failed: {error}"
    set_connections([config])
    return _run_job(config, world_size)


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Sets the arguments that Hydra reads."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        yield
    finally:
        sys.argv = before


def _run_jobs(jobs: list[tuple[Config, int]], sweep: bool) -> int:
    """Runs one after another. A failed job does not stop a sweep; a signal, which is sent to the process, does."""
    ended: list[Ended] = []
    highest = 0
    set_connections([config for config, _ in jobs])
    for config, world_size in jobs:
        status, result = _run_job(config, world_size)
        ended.append(Ended(config, result))
        highest = max(highest, status)
        if status > USER_ERROR_STATUS:
            break
    if sweep and rank() == 0 and not any(job.config.run.dry for job in ended):
        print_jobs(ended, len(jobs))
    return highest


def _read_jobs() -> list[tuple[Config, int]]:
    """The settings of every job of the command line, all checked before the first one starts."""
    # Otherwise Hydra prints errors over many lines and exits by itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not FLAGS & set(sys.argv):
        return _compose_jobs()
    # Hydra requires a folder for its record of a sweep.
    with (
        tempfile.TemporaryDirectory(prefix="nld-train-") as scratch,
        _command_line(sweep_arguments(sys.argv[1:], f"hydra.sweep.dir={scratch}")),
    ):
        jobs = _compose_jobs()
    refuse_shared_directories([config for config, _ in jobs])
    return jobs


def _compose_jobs() -> list[tuple[Config, int]]:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from nld_train.config.compose import ROOT_NAME, composition_message, config_directory

    jobs: list[tuple[Config, int]] = []
    errors: list[Exception] = []

    def read(composed: DictConfig) -> None:
        try:
            jobs.append(_read(composed))
        except Exception as error:  # Raised from here, Hydra would print a line of its own.
            errors.append(error)

    try:
        with _parser_errors_as_user_errors():
            hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=ROOT_NAME)(read)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_message(error)) from error
    except UserError:  # of the parser
        raise
    except ValueError as error:  # a flag of Hydra's own that does not go with the others
        raise UserError(f"{error} (see nld-train --help)") from error
    except SystemExit as stop:
        if stop.code:  # it has printed why
            raise SystemExit(USER_ERROR_STATUS) from stop
        raise
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


def _run_job(config: Config, world_size: int) -> tuple[int, str]:
    """Runs a job; returns its exit status, and what became of it in a few words."""
    try:
        status = _start(config, world_size)
    except UserError as error:
        return report_error(str(error)), f"failed: {error}"
    except OutputError:  # of a dry run, in which nothing is lost
        raise
    except OSError as error:
        return report_error(system_error(error)), f"failed: {system_error(error)}"
    return status, "finished" if status == 0 else f"ended with exit code {status}"


def _read(composed: DictConfig) -> tuple[Config, int]:
    """The checked settings and the number of processes they are for."""
    from nld_train.config.load import load_config
    from nld_train.config.validate import validate

    config = named_job(load_config(composed))
    world_size = int(os.environ.get("WORLD_SIZE", config.run.plan_world_size if config.run.dry else 1))
    validate(config, world_size)
    return config, world_size


def _start(config: Config, world_size: int) -> int:
    """Print the plan, build the model on the meta device, or train."""
    if config.run.dry and rank() != 0:  # rank 0 plans for all
        return 0
    if config.run.dry is True:
        from nld_train.config.report import print_plan
        from nld_train.data.plan_facts import data_facts
        from nld_train.training.checkpoint.noisy_lengths import noisy_lengths_of_run

        config = noisy_lengths_of_run(config, world_size)
        print_plan(config, world_size, data_facts(config))
        return 0
    from nld_train.library_warnings import ignore_known_warnings

    ignore_known_warnings()
    if config.run.dry == "build":
        from nld_train.model.dry_build import build_plan
        from nld_train.training.checkpoint.noisy_lengths import noisy_lengths_of_run

        return build_plan(noisy_lengths_of_run(config, world_size)) or 0
    from nld_train.training.loop.preflight import check_paths

    # Before torch is imported, which takes seconds.
    check_paths(config)
    from nld_train.training.loop.run import train

    output_not_required()
    return train(config)


if __name__ == "__main__":
    sys.exit(main())
