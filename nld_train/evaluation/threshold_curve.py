"""`nld-curve`: tokens per forward and agreement against the threshold, of the model's confidence and of a sampler."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Column, Table

from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, Engine, Mode, Threshold
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.statistics import agreement, decoding_figures
from nld_train.decoding.command_line.terminal import numeric, report_console
from nld_train.decoding.policies.sampler_files import load_sampler
from nld_train.decoding.policies.sampler_network import TrainedSampler
from nld_train.decoding.policies.trained_sampler import SamplerPolicy
from nld_train.evaluation.measure import Figures, decoding_progress, shown
from nld_train.evaluation.reports import give_report, plot, read_report_request, trained_sampler_directory
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
        measured = measure_curves(engine, request.prompts, options, arguments.thresholds, sampler, request.batch_size)
    give_report(
        arguments,
        measured,
        lambda: print_curves(report_console(), measured),
        lambda path: draw_curves(path, measured),
    )


def measure_curves(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    thresholds: Sequence[float],
    sampler: TrainedSampler | None,
    batch_size: int,
) -> Figures:
    """Decodes the prompts at every threshold.

    Args:
        engine: the model.
        prompts: ids of each.
        options: greedy.
        thresholds: each in [0, 1].
        sampler: its curve is measured too, beside that of the model's confidence; None for no such curve.
        batch_size: maximum number of sequences that are decoded together.

    Returns:
        `block_length`; `ar` and `one_per_pass`, the references; `curves`: for `confidence` (and `sampler`)
        one object per threshold, lowest first: `threshold`, what `statistics.decoding_figures` returns, and
        `agreement_with_one_per_pass`.
    """
    policies: dict[str, Callable[[float], CommitPolicy]] = {"confidence": Threshold}
    if sampler is not None:
        policies["sampler"] = lambda threshold: SamplerPolicy(sampler, threshold)
    decodings = 2 + len(policies) * len(thresholds)
    with decoding_progress("curve", decodings * len(prompts), options.max_new_tokens) as observer:

        def decoded(mode: Mode, policy: CommitPolicy | None) -> DecodeResult:
            return decode(engine, prompts, mode, options, policy, observer(), batch_size)

        reference, slow = decoded("ar", None), decoded("diffusion", ONE_PER_PASS)

        def point(policy: CommitPolicy, threshold: float) -> Figures:
            result = decoded("diffusion", policy)
            same = agreement(result.token_ids, slow.token_ids)
            return {"threshold": threshold, **decoding_figures(result, reference), "agreement_with_one_per_pass": same}

        return {
            "block_length": options.block_length,
            "ar": decoding_figures(reference, reference),
            "one_per_pass": decoding_figures(slow, reference),
            "curves": {name: [point(policy(t), t) for t in sorted(thresholds)] for name, policy in policies.items()},
        }


def print_curves(console: Console, measured: Figures) -> None:
    """Prints one table, a row per curve and threshold."""
    columns = ("threshold", "tokens per forward", "accepted per pass", "same as AR", "same as one per pass")
    table = Table(Column("commits by", no_wrap=True), *map(numeric, columns))
    for name, points in measured["curves"].items():
        for point in points:
            table.add_row(name, *_cells(point))
        table.add_section()
    table.add_row("one per pass", *_cells({**measured["one_per_pass"], "agreement_with_one_per_pass": 1.0}))
    console.print(table)


def _cells(point: Figures) -> list[str]:
    shares = (point["agreement"], point["agreement_with_one_per_pass"])
    return [
        shown(point.get("threshold"), "g"),
        shown(point["tokens_per_forward"]),
        shown(point["accepted_length"]),
        *(shown(share, ".1%") for share in shares),
    ]


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
