"""`nld-eval`: finds tasks and checkpoint, evaluates, prints the tables and writes the results."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from nld_train.errors import UserError
from nld_train.evaluation.harness.chat_settings import ChatSettings
from nld_train.evaluation.harness.checks import check_command_line
from nld_train.evaluation.harness.settings import EvaluationSettings
from nld_train.evaluation.harness.tasks import TaskList, load_tasks
from nld_train.printable import say
from nld_train.processes import rank
from nld_train.results import give_result

_Request = tuple[EvaluationSettings, ChatSettings, TaskList]


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.eval` has parsed, on every rank.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read; or a task's text that contains
            the mask token.
    """
    request = check_command_line(arguments)
    settings, _, task_list = request
    _require_lm_eval()
    if rank() > 0:
        _run_worker(arguments, request)
        return
    tasks, manager = _load(arguments, task_list)
    results = _evaluate(arguments, request, tasks, manager)
    give_result(arguments, results, lambda: _show(results, settings), default=_plain)


def _require_lm_eval() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(f"nld-eval needs the extra eval: pip install 'nld-train[eval]' ({error})") from error


def _load(arguments: Namespace, task_list: TaskList) -> tuple[list[Any], Any]:
    """The tasks, and lm_eval's task manager."""
    if arguments.unsafe_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    manager = _task_manager(arguments.include_path, task_list)
    tasks = load_tasks(task_list.tasks, manager)
    _refuse_unsafe(tasks, arguments.unsafe_code)
    return tasks, manager


def _task_manager(folders: list[str], task_list: TaskList) -> Any:
    """lm_eval's task manager; its thousands of built-in tasks are read only if the given folders lack a task."""
    from lm_eval.tasks import TaskManager

    if folders:
        own = TaskManager(include_path=folders, include_defaults=False)
        if set(task_list.tasks) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=folders or None)


def _refuse_unsafe(tasks: list[Any], allowed: bool) -> None:
    from nld_train.evaluation.harness.generation_arguments import tasks_within

    for task in tasks_within(tasks):
        if getattr(task, "UNSAFE_CODE", False) and not allowed:
            raise UserError(
                f"--tasks: {task.task_name} runs code that the model wrote; allow it with --unsafe-code, in a sandbox"
            )


def _model(arguments: Namespace, request: _Request, tasks: Sequence[Any] = ()) -> Any:
    """The model of this rank, after a check of the tasks' arguments."""
    from nld_train.evaluation.harness.model import NldModel

    settings, chat, task_list = request
    values = settings.record()
    if settings.max_new_tokens is None:
        values["max_new_tokens"] = task_list.max_new_tokens
    return NldModel(arguments.checkpoint, arguments.tokenizer, chat=chat, tasks=tasks, **values)


def _run_worker(arguments: Namespace, request: _Request) -> None:
    model = _model(arguments, request)
    model.workers.worker_loop()
    model.close()


def _evaluate(arguments: Namespace, request: _Request, tasks: list[Any], manager: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    settings, chat, _ = request
    model = _model(arguments, request, tasks)
    results: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=arguments.num_fewshot,
        batch_size=settings.batch_size,
        limit=arguments.limit,
        apply_chat_template=chat.apply_chat_template,
        fewshot_as_multiturn=chat.fewshot_as_multiturn,
        system_instruction=chat.system_instruction,
        log_samples=arguments.log_samples,
        confirm_run_unsafe_code=arguments.unsafe_code,
    )
    evaluation = {"checkpoint": str(model.source.directory), **model.resolved, "chat": chat.record()}
    results["evaluation"] = {**evaluation, **model.figures()}
    model.close()
    return results


def _show(results: dict[str, Any], settings: EvaluationSettings) -> None:
    from lm_eval.utils import make_table

    say(make_table(results))
    if results.get("groups"):
        say(make_table(results, "groups"))
    evaluation = results["evaluation"]
    for task, figures in evaluation.get("generation", {}).items():
        say(
            f"{task}: {figures['tokens_per_forward']:.2f} tokens per forward in mode {settings.mode} "
            f"({figures['new_tokens']} tokens, {figures['forwards']} forwards)"
        )
    if len(evaluation.get("generation", {})) > 1:
        mean = evaluation["mean_over_tasks"]["tokens_per_forward"]
        print(f"mean over {len(evaluation['generation'])} tasks: {mean:.2f} tokens per forward")
    if "bound" in evaluation:
        bound = evaluation["bound"]
        print(
            f"log-likelihoods are lower bounds with {bound['samples']} noise samples per block of "
            f"{bound['block_length']}: standard error {bound['standard_error']:.3g} nats per request "
            f"({bound['sampled']} of {bound['requests']} sampled, the others exact)"
        )


def _plain(value: Any) -> Any:
    """A value that JSON does not support, as a number or text."""
    return value.item() if hasattr(value, "item") else str(value)
