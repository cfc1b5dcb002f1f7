"""The check of a command line of `nld-eval`, before torch and lm_eval are imported."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from nld_train.decoding.command_line.checks import check_files
from nld_train.decoding.policies.registry import policy_arguments
from nld_train.errors import UserError
from nld_train.evaluation.harness.chat_settings import ChatSettings
from nld_train.evaluation.harness.settings import EvaluationSettings
from nld_train.evaluation.harness.tasks import TaskList, resolve


def check_command_line(arguments: Namespace) -> tuple[EvaluationSettings, ChatSettings, TaskList]:
    """Settings, those of chat templates, and tasks of a command line.

    Raises:
        UserError: a value out of its range, a file or folder that does not exist, or tasks that run code without
            permission.
    """
    tasks = resolve(arguments.tasks)
    settings = _settings(arguments, tasks)
    chat = ChatSettings.of(arguments, tasks.chat_template)
    for path in arguments.include_path:
        if not Path(path).is_dir():
            raise UserError(f"--include-path: there is no folder {path}")
    if tasks.unsafe_code and not arguments.unsafe_code:
        raise UserError("--tasks: some tasks run code that the model wrote; allow it with --unsafe-code, in a sandbox")
    if arguments.log_samples and arguments.output is None and not arguments.json:
        raise UserError("--log-samples: documents and answers are part of --output and --json; give one of them")
    check_files(arguments)
    return settings, chat, tasks


def _settings(arguments: Namespace, tasks: TaskList) -> EvaluationSettings:
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit: {arguments.limit} is not 1 or more")
    if arguments.num_fewshot is not None and arguments.num_fewshot < 0:
        raise UserError(f"--num-fewshot: {arguments.num_fewshot} is not 0 or more")
    names = (
        "mode",
        "batch_size",
        "block_length",
        "likelihood",
        "block_start",
        "cuda_graphs",
        "samples",
        "max_new_tokens",
        "seed",
        "tensor",
        "pipeline",
    )
    given = {name: getattr(arguments, name) for name in (*names, "policy", *policy_arguments())}
    if arguments.mode == "diffusion" and arguments.likelihood is None:
        given["likelihood"] = tasks.likelihood
    # Without a value, `--adapter` means the checkpoint's own.
    directory = arguments.adapter if isinstance(arguments.adapter, str) else None
    try:
        return EvaluationSettings.of(**given, adapter=bool(arguments.adapter), adapter_directory=directory)
    except UserError:
        raise
    except ValueError as error:
        name, _, rest = str(error).partition(":")
        raise UserError(f"--{name.replace('_', '-')}:{rest}") from error
