"""A sweep whose jobs another program starts: `hydra/launcher=submitit_slurm` submits each as a job of Slurm.

The command checks all jobs first, then waits until all have ended. A launched job is a process somewhere else: it
composes its settings anew, runs, and leaves its result in a file beside the own logs of the launcher, where the command
reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nld_train.commands.sweep import FLAGS, Ended, sweep_arguments
from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.outside_json import read_object
from nld_train.processes import rank

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nld_train.config.schema import Config

# Runs one composed job; returns its exit status, and what became of it in a few words.
RunComposed = Callable[["DictConfig"], tuple[int, str]]
_CHOICE, _SETTINGS = "hydra/launcher=", "hydra.launcher."
_BASIC = "basic"
# Below the common run.dir: what the launcher writes, and the results.
_FOLDER = ".sweep"
_LOST = "ended without a result; its log is in {}"


def launcher_of(words: Sequence[str]) -> str | None:
    """The launcher that a command line chooses for its sweep; None for Hydra's own, which runs jobs one after another.

    Raises:
        UserError: there is no sweep to launch, or its package, or Slurm, is not installed.
    """
    chosen = next((word.partition("=")[2] for word in reversed(words) if word.startswith(_CHOICE)), _BASIC)
    if chosen == _BASIC:
        return None
    if not FLAGS & set(words):
        raise UserError(f"{_CHOICE}{chosen}: a launcher starts the jobs of a sweep; give --multirun")
    if chosen.startswith("submitit") and find_spec("submitit") is None:
        raise UserError(f"{_CHOICE}{chosen}: needs submitit: pip install 'nld-train[slurm]'")
    if chosen == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UserError(
            f"{_CHOICE}{chosen}: there is no sbatch on this machine; start the sweep where jobs are submitted"
        )
    return chosen


def without_launcher(words: Sequence[str]) -> list[str]:
    """The same sweep as this process would run it, to check its jobs."""
    return [word for word in words if not word.startswith((_CHOICE, _SETTINGS))]


def launch_jobs(words: Sequence[str], configs: Sequence[Config], run_composed: RunComposed) -> list[tuple[int, Ended]]:
    """Launches the jobs of a sweep and waits for them; each with its exit status, in their order.

    Args:
        words: the command line.
        configs: of the jobs, checked.
        run_composed: a function at the top of a module, which the launched process imports.

    Raises:
        UserError: Hydra has no such launcher, or refuses its settings.
    """
    folder = _folder_of(configs)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("result-*.json"):
        left.unlink()
    _launch(sweep_arguments(words, f"hydra.sweep.dir={folder.resolve()}"), words, run_composed)
    return [_result_of(folder, number, config) for number, config in enumerate(configs)]


def _folder_of(configs: Sequence[Config]) -> Path:
    parents = [os.path.dirname(config.run.dir) or "." for config in configs]
    return Path(os.path.commonpath(parents)) / _FOLDER


def _launch(arguments: Sequence[str], words: Sequence[str], run_composed: RunComposed) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from nld_train.config.compose import ROOT_NAME, composition_message, config_directory

    # A function inside another one is sent to the launched process as it is, with what it refers to.
    def task(composed: DictConfig) -> None:
        run_launched(composed, list(words), run_composed)

    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=ROOT_NAME)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_message(error)) from error
    finally:
        sys.argv = before


def run_launched(composed: DictConfig, words: Sequence[str], run_composed: RunComposed) -> None:
    """In the launched process: runs a job and writes its result.

    Args:
        composed: its settings.
        words: the command line of the sweep, from which the job has its name.
        run_composed: runs it.
    """
    from hydra.core.hydra_config import HydraConfig

    _join_the_other_tasks()
    settings: Any = HydraConfig.get()
    sys.argv = [sys.argv[0], *words]
    status, result = run_composed(composed)
    if rank() == 0:
        path = Path(settings.sweep.dir) / f"result-{settings.job.num}.json"
        write_atomically(path, json.dumps({"status": status, "result": result}))


def _join_the_other_tasks() -> None:
    """Sets the variables that torchrun would set, where a job of submitit has several tasks."""
    if find_spec("submitit") is None:
        return
    import submitit

    try:
        tasks = submitit.JobEnvironment().num_tasks
    except RuntimeError:  # no job of submitit
        return
    if tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export()


def _result_of(folder: Path, number: int, config: Config) -> tuple[int, Ended]:
    path = folder / f"result-{number}.json"
    if not path.is_file():
        return 1, Ended(config, _LOST.format(folder / ".submitit"))
    found = read_object(path)
    return int(found["status"]), Ended(config, str(found["result"]))
