"""The check of a command line of `nld-eval`, before torch and lm_eval are imported."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from nld_train.decoding.command_line.checks import check_files
from nld_train.decoding.policies.registry import PolicySettings
from nld_train.errors import UserError
from nld_train.evaluation.harness.settings import EvaluationSettings
from nld_train.evaluation.harness.tasks import TaskList, resolve


def check_command_line(arguments: Namespace) -> tuple[EvaluationSettings, TaskList]:
    """Settings and tasks of a command line.

    Raises:
        UserError: a value out of its range, a file or folder that does not exist, or tasks that run code without
            permission.
    """
    settings, tasks = _settings(arguments), resolve(arguments.tasks)
    for path in arguments.include_path:
        if not Path(path).is_dir():
            raise UserError(f"--include-path: there is no folder {path}")
    if tasks.unsafe_code and not arguments.unsafe_code:
        raise UserError("--tasks: some tasks run code that the model wrote; allow it with --unsafe-code, in a sandbox")
    check_files(arguments)
    return settings, tasks


def _settings(arguments: Namespace) -> EvaluationSettings:
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit: {arguments.limit} is not 1 or more")
    if arguments.num_fewshot is not None and arguments.num_fewshot < 0:
        raise UserError(f"--num-fewshot: {arguments.num_fewshot} is not 0 or more")
    try:
        settings = EvaluationSettings(
            mode=arguments.mode,
            batch_size=arguments.batch_size,
            block_length=arguments.block_length,
            policy=PolicySettings.of(vars(arguments)),
            samples=arguments.samples,
            max_new_tokens=arguments.max_new_tokens,
            adapter=bool(arguments.adapter),
            # Without a value, `--adapter` means the checkpoint's own.
            adapter_directory=arguments.adapter if isinstance(arguments.adapter, str) else None,
            seed=arguments.seed,
            tensor=arguments.tensor,
            pipeline=arguments.pipeline,
        )
    except ValueError as error:
        name, _, rest = str(error).partition(":")
        raise UserError(f"--{name.replace('_', '-')}:{rest}") from error
    settings.policy.check_mode(settings.mode)
    return settings
