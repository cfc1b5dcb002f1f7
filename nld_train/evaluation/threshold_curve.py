"""`nld-curve`: tokens per forward and agreement against the threshold, of the model's confidence and of a sampler."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from operator import itemgetter

from rich.console import Console
from rich.table import Column, Table

from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, Engine, Mode, Threshold
from nld_train.decoding.command_line.terminal import numeric, report_console
from nld_train.decoding.policies.sampler_files import load_sampler
from nld_train.decoding.policies.sampler_network import TrainedSampler
from nld_train.decoding.policies.trained_sampler import SamplerPolicy
from nld_train.evaluation.by_category import MEANS
from nld_train.evaluation.measure import Figures, decoding_progress, shown
from nld_train.evaluation.reports import (
    ReportRequest,
    give_report,
    plot,
    read_report_request,
    trained_sampler_directory,
)
from nld_train.evaluation.trajectories import ONE_PER_PASS


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.curve` has parsed.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read.
    """
    request, (options,) = read_report_request(arguments, [arguments.block_length], arguments.thresholds)
    directory = trained_sampler_directory(arguments, request)
    with request.source.open() as engine:
        sampler = load_sampler(directory, engine) if directory else None
        measured = measure_curves(engine, request, options, arguments.thresholds, sampler)
    give_report(
        arguments,
        measured,
        lambda: print_curves(report_console(), measured),
        lambda path: draw_curves(path, measured),
    )


def measure_curves(
    engine: Engine,
    request: ReportRequest,
    options: DecodeOptions,
    thresholds: Sequence[float],
    sampler: TrainedSampler | None,
) -> Figures:
    """Decodes the prompts at every threshold.

    Args:
        engine: the model.
        request: the prompts, and their categories.
        options: greedy.
        thresholds: each in [0, 1].
        sampler: its curve is measured too, beside that of the model's confidence; None for no such curve.

    Returns:
        `block_length`; `ar` and `one_per_pass`, the references; `curves`: for `confidence` (and `sampler`)
        one object per threshold, lowest first: `threshold`, what `statistics.decoding_figures` returns, and
        `agreement_with_one_per_pass`; all of them of all prompts and by category.
    """
    policies: dict[str, Callable[[float], CommitPolicy]] = {"confidence": Threshold}
    if sampler is not None:
        policies["sampler"] = lambda threshold: SamplerPolicy(sampler, threshold)
    decodings = 2 + len(policies) * len(thresholds)
    with decoding_progress("curve", decodings * len(request.prompts), options.max_new_tokens) as observer:

        def decoded(mode: Mode, policy: CommitPolicy | None) -> DecodeResult:
            return request.decode(engine, mode, options, policy, observer())

        reference, slow = decoded("ar", None), decoded("diffusion", ONE_PER_PASS)

        def point(policy: CommitPolicy, threshold: float) -> Figures:
            result = decoded("diffusion", policy)
            return {"threshold": threshold, **request.figures(result, reference, agreement_with_one_per_pass=slow)}

        return {
            "block_length": options.block_length,
            "ar": request.figures(reference, reference),
            "one_per_pass": request.figures(slow, reference, agreement_with_one_per_pass=slow),
            "curves": {name: [point(policy(t), t) for t in sorted(thresholds)] for name, policy in policies.items()},
        }


def print_curves(console: Console, measured: Figures) -> None:
    """Prints one table, a row per curve and threshold, and with categories one of the means over them."""
    console.print(_table(measured, lambda point: point))
    for key, title in MEANS.items():
        if key in measured["one_per_pass"]:
            console.print(title, _table(measured, itemgetter(key)), sep="\n")


def _table(measured: Figures, figures_of: Callable[[Figures], Figures]) -> Table:
    columns = ("threshold", "tokens per forward", "accepted per pass", "same as AR", "same as one per pass")
    table = Table(Column("commits by", no_wrap=True), *map(numeric, columns))
    for name, points in measured["curves"].items():
        for point in points:
            table.add_row(name, shown(point["threshold"], "g"), *_cells(figures_of(point)))
        table.add_section()
    table.add_row("one per pass", "-", *_cells(figures_of(measured["one_per_pass"])))
    return table


def _cells(point: Figures) -> list[str]:
    shares = (point.get("agreement"), point.get("agreement_with_one_per_pass"))
    speeds = (point.get("tokens_per_forward"), point.get("accepted_length"))
    return [*map(shown, speeds), *(shown(share, ".1%") for share in shares)]


def draw_curves(path: str, measured: Figures) -> None:
    """Agreement over tokens per forward, and both over the threshold, as PNG."""
    with plot(path, 3) as (trade, speed, same):
        for name, points in measured["curves"].items():
            thresholds = [point["threshold"] for point in points]
            per_forward = [point["tokens_per_forward"] for point in points]
            shares = [point["agreement_with_one_per_pass"] for point in points]
            trade.plot(per_forward, shares, marker="o", markersize=3, label=name)
            speed.plot(thresholds, per_forward, marker="o", markersize=3, label=name)
            same.plot(thresholds, [point["agreement"] for point in points], marker="o", markersize=3, label=name)
        slow = measured["one_per_pass"]
        trade.plot([slow["tokens_per_forward"]], [1.0], "k*", label="one per pass")
        speed.axhline(slow["tokens_per_forward"], color="k", linewidth=0.8, linestyle=":", label="one per pass")
        same.axhline(slow["agreement"], color="k", linewidth=0.8, linestyle=":", label="one per pass")
        trade.set(xlabel="tokens per forward", ylabel="share of tokens equal to one per pass")
        speed.set(xlabel="threshold", ylabel="tokens per forward")
        same.set(xlabel="threshold", ylabel="share of tokens equal to AR's", ylim=(0, 1.02))
