"""Shared by `nld-curve`, `nld-bound`, `nld-sampler` and `nld-acceptance`: reading a request, and writing the report."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nld_train.decoding import DecodeOptions, Threshold
from nld_train.decoding.algorithms.options import check_request
from nld_train.decoding.command_line.request import (
    Request,
    read_request,
    value_errors_as_user_errors,
)
from nld_train.decoding.policies.sampler_files import require_sampler, sampler_directory
from nld_train.evaluation.measure import Figures
from nld_train.results import check_result_files, give_result


def give_report(arguments: Namespace, content: Figures, show: Callable[[], None], draw: Callable[[str], None]) -> None:
    """Shows figures, or prints them with `--json`; writes `--output` and draws `--plot`, where they are given."""
    if arguments.plot is not None:
        draw(arguments.plot)
    give_result(arguments, content, show)


def read_report_request(
    arguments: Namespace, block_lengths: Sequence[int], thresholds: Iterable[float]
) -> tuple[Request, list[DecodeOptions]]:
    """Reads and checks the options that these commands have in common; reads no weights.

    Args:
        arguments: a command line with `commands.arguments.add_outputs`.
        block_lengths: block lengths to decode with.
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
    request = read_request(arguments)
    with value_errors_as_user_errors():
        settings = [
            DecodeOptions(arguments.max_new_tokens, block_length=length, stop_tokens=request.source.stop_tokens)
            for length in block_lengths
        ]
        check_request(request.source.description, request.prompts, "diffusion", settings[0])
    return request, settings


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
