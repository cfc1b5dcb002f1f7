"""Shared by `nld-curve`, `nld-bound`, `nld-sampler` and `nld-acceptance`: reading a request, and writing the report."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.decoding import CommitPolicy, DecodeOptions, Engine, Mode, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import check_request
from nld_train.decoding.algorithms.outputs import DecodeResult, Observer
from nld_train.decoding.algorithms.statistics import agreement, decoding_figures
from nld_train.decoding.command_line.request import (
    Request,
    check_batch_size,
    read_request,
    source_of,
    value_errors_as_user_errors,
)
from nld_train.decoding.policies.sampler_files import require_sampler, sampler_directory
from nld_train.evaluation.by_category import pooled_and_by_category, selected
from nld_train.evaluation.categories import Conversation, has_categories, read_questions
from nld_train.evaluation.measure import Figures
from nld_train.results import check_result_files, give_result


@dataclass(frozen=True)
class ReportRequest(Request):
    """Prompts and the checkpoint to measure with them.

    Attributes:
        categories: of each prompt; empty where the file has none.
    """

    categories: Sequence[str] = ()

    def decode(
        self, engine: Engine, mode: Mode, options: DecodeOptions, policy: CommitPolicy | None, observer: Observer
    ) -> DecodeResult:
        """Decodes the prompts."""
        return decode(engine, self.prompts, mode, options, policy, observer, self.batch_size)

    def figures(self, result: DecodeResult, reference: DecodeResult, **others: DecodeResult) -> Figures:
        """The figures of a decoding of all prompts, pooled and by category.

        Args:
            result: of the prompts.
            reference: AR decoding of them.
            **others: by the name of a figure, more decodings whose agreement with the result it is.
        """

        def of(indices: Sequence[int]) -> Figures:
            chosen = selected(result, indices)
            same = {name: agreement(chosen.token_ids, selected(one, indices).token_ids) for name, one in others.items()}
            return {**decoding_figures(chosen, selected(reference, indices)), **same}

        return pooled_and_by_category(len(self.prompts), self.categories, of)


def give_report(arguments: Namespace, content: Figures, show: Callable[[], None], draw: Callable[[str], None]) -> None:
    """Shows figures, or prints them with `--json`; writes `--output` and draws `--plot`, where they are given."""
    if arguments.plot is not None:
        draw(arguments.plot)
    give_result(arguments, content, show)


def read_report_request(
    arguments: Namespace, block_lengths: Sequence[int | None], thresholds: Iterable[float]
) -> tuple[ReportRequest, list[DecodeOptions]]:
    """Reads and checks the options that these commands have in common; reads no weights.

    Args:
        arguments: a command line with `commands.arguments.add_outputs`.
        block_lengths: block lengths to decode with; None is the checkpoint's.
        thresholds: of the policy `threshold`.

    Returns:
        Prompts and checkpoint, and greedy options for each block length.

    Raises:
        UserError: a file that cannot be written, a threshold or another option out of its range, or prompts that
            cannot be decoded in every mode.
    """
    check_result_files(arguments)
    with value_errors_as_user_errors():
        for threshold in thresholds:
            Threshold(threshold)
    request = _read_request(arguments)
    with value_errors_as_user_errors():
        settings = [
            DecodeOptions(
                arguments.max_new_tokens,
                block_length=request.source.block_length if length is None else length,
                stop_tokens=request.source.stop_tokens,
            )
            for length in block_lengths
        ]
        for each in settings:
            # What diffusion is compared with, and diffusion itself.
            for mode in ("ar", "diffusion"):
                check_request(request.source.description, request.prompts, mode, each)
    return request, settings


def _read_request(arguments: Namespace) -> ReportRequest:
    """The request of a command line. Lines with a category are read as `nld-acceptance` reads them, one turn of each.

    Raises:
        UserError: what `read_request` or `read_questions` refuses.
    """
    if arguments.prompts is None or not has_categories(Path(arguments.prompts)):
        request = read_request(arguments)
        return ReportRequest(request.source, request.texts, request.prompts, request.batch_size, request.continuations)
    questions = read_questions(Path(arguments.prompts))
    check_batch_size(arguments)
    source = source_of(arguments)
    prompts = [Conversation(question, source.tokenizer).prompt(0) for question in questions]
    texts, categories = [question.turns[0] for question in questions], [question.category for question in questions]
    return ReportRequest(source, texts, prompts, arguments.batch_size, categories=categories)


def trained_sampler_directory(arguments: Namespace, request: Request) -> Path | None:
    """Directory of the trained sampler; None where the checkpoint has none and the command line names none.

    Raises:
        UserError: `--sampler` names a directory without one.
    """
    directory = sampler_directory(arguments.sampler, request.source.directory)
    if arguments.sampler is None and not directory.is_dir():
        return None
    require_sampler(directory)
    return directory


@contextmanager
def plot(path: str, columns: int, width: float = 6.0) -> Iterator[Any]:
    """A row of matplotlib axes, array `[columns]`, saved as PNG at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width * columns, 4.5), constrained_layout=True, squeeze=False)
    yield axes[0]
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=110)
    plt.close(figure)
