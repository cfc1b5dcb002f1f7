"""`nld-report`: writes the page of a run."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nld_train.decoding.policies.threshold import THRESHOLD
from nld_train.errors import UserError
from nld_train.files import write_atomically
from nld_train.monitoring.run_status import require_run
from nld_train.printable import say
from nld_train.results import check_output
from nld_train.training.metrics.registry import MetricTable

_DEFAULT_FILE = "report.html"


def check(arguments: Namespace) -> None:
    """Checks a command line before anything heavy is imported.

    Raises:
        UserError: the folder holds no run, a file cannot be read or written, a value is out of its range, or plotly is
            not installed.
    """
    require_run(arguments.directory)
    check_output("--output" if arguments.output else str(output_of(arguments)), output_of(arguments))
    for option in ("prompt", "prompts", "max_new_tokens", "threshold", "tokenizer"):
        if arguments.no_decoding and getattr(arguments, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: nothing is decoded with --no-decoding")
    if arguments.prompt == "":
        raise UserError("--prompt: is empty")
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: {arguments.max_new_tokens} is not 1 or more")
    if arguments.threshold is not None:
        _check_threshold(arguments.threshold)
    if arguments.prompts is not None and not Path(arguments.prompts).is_file():
        raise UserError(f"--prompts {arguments.prompts}: is no file")
    if find_spec("plotly") is None:
        raise UserError("nld-report needs plotly: pip install 'nld-train[report]'")


def _check_threshold(value: float) -> None:
    try:
        THRESHOLD.check(value)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def output_of(arguments: Namespace) -> Path:
    """The file that a command line writes."""
    return Path(arguments.output) if arguments.output else Path(arguments.directory) / _DEFAULT_FILE


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.report` has parsed.

    Raises:
        UserError: prompts that the command line names cannot be decoded.
    """
    from nld_train.report_page.curves import figures_of
    from nld_train.report_page.page import page_of

    played, note = _played(arguments)
    metrics = MetricTable()
    content = metrics.read(arguments.directory / "metrics.jsonl")
    figures = figures_of(content.records, metrics)
    path = output_of(arguments)
    write_atomically(path, page_of(arguments.directory, content, figures, played, note))
    if note:
        say(note)
    say(f"{path}: {len(figures)} figures, {len(played.get('prompts', ()))} decoded prompts")


def _played(arguments: Namespace) -> tuple[dict[str, Any], str]:
    """The decoded texts, and why there are none although the command line does not decline them.

    Curves can be shown without them: of a run on another machine the held-out data is not here.
    """
    if arguments.no_decoding:
        return {}, ""
    from nld_train.report_page.decoded import decoded_texts

    try:
        return decoded_texts(arguments), ""
    except UserError as error:
        if arguments.prompt is not None or arguments.prompts is not None:
            raise
        return {}, f"No text was decoded: {error}. Name prompts with --prompt or --prompts."
