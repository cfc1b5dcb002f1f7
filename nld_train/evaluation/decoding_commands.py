"""What `nld-curve`, `nld-bound` and `nld-sampler` do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from nld_train.decoding import CommitPolicy, DecodeOptions, Threshold
from nld_train.decoding.algorithms.options import check_request
from nld_train.decoding.command_line.request import (
    Request,
    read_request,
    sampler_directory,
    value_errors_as_user_errors,
)
from nld_train.decoding.command_line.terminal import report_console
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.policies.sampler_files import (
    check_directory,
    embedding_of,
    load_sampler,
    require_sampler,
    save_sampler,
)
from nld_train.decoding.policies.trained_sampler import SamplerPolicy, SamplerShape
from nld_train.errors import UserError
from nld_train.evaluation.measure import Figures, check_writable, shown, write_json
from nld_train.evaluation.sampler_data import Examples, collect
from nld_train.evaluation.sampler_training import SamplerTraining, principal_components, quality, train_sampler
from nld_train.evaluation.speed_bound import draw_bound, measure_bound, print_bound
from nld_train.evaluation.threshold_curve import draw_curves, measure_curves, print_curves

_LOSS_EVERY = 100


def run_curve(arguments: Namespace) -> None:
    """`nld-curve`: tokens per forward and agreement against the threshold.

    Raises:
        UserError: a request that cannot be answered, found before any weight is read.
    """
    check_writable(arguments.json, arguments.plot)
    _check_thresholds(arguments.thresholds)
    request, (options,) = _request(arguments, (arguments.block_length,))
    directory = _known_sampler(arguments, request)
    with request.source.open() as engine:
        sampler = load_sampler(directory, engine) if directory else None
        measured = measure_curves(engine, request.prompts, options, arguments.thresholds, sampler, request.batch_size)
    print_curves(report_console(), measured)
    _write(arguments, measured, lambda path: draw_curves(path, measured))


def run_bound(arguments: Namespace) -> None:
    """`nld-bound`: the oracle's tokens per forward beside those of every way to decode.

    Raises:
        UserError: a request that cannot be answered, found before any weight is read.
    """
    check_writable(arguments.json, arguments.plot)
    _check_thresholds([arguments.threshold])
    if arguments.budget < 1:
        raise UserError(f"--budget: {arguments.budget} is not 1 or more")
    request, settings = _request(arguments, arguments.block_lengths)
    directory = _known_sampler(arguments, request)
    with request.source.open() as engine:
        policies: dict[str, CommitPolicy] = {f"threshold {arguments.threshold:g}": Threshold(arguments.threshold)}
        if directory:
            policies["trained sampler"] = SamplerPolicy(load_sampler(directory, engine), arguments.threshold)
        bounds = [
            measure_bound(engine, request.prompts, options, policies, request.batch_size, arguments.budget)
            for options in settings
        ]
    print_bound(report_console(), bounds)
    _write(arguments, {"bounds": bounds}, lambda path: draw_bound(path, bounds))


def run_sampler(arguments: Namespace) -> None:
    """`nld-sampler`: trains the sampler on most of the prompts, judges it on the others, and saves it.

    Raises:
        UserError: a request that cannot be answered, found before any weight is read; or trajectories without a mask.
    """
    check_writable(arguments.json, arguments.plot)
    _check_thresholds(arguments.thresholds)
    shape, settings = _sampler_settings(arguments)
    request, (options,) = _request(arguments, (arguments.block_length,))
    held_out = _held_out(arguments, len(request.prompts))
    directory = sampler_directory(arguments, request.source)
    check_directory(directory)
    console = report_console()
    with request.source.open() as engine:
        seen, unseen = _examples(engine, request, options, held_out, console)
        table = principal_components(embedding_of(engine), shape.components)
        sampler = train_sampler(shape, table, seen, settings, partial(_tell, console, settings.steps))
        report = quality(sampler, unseen) | {
            "prompts": len(request.prompts) - held_out,
            "held_out_prompts": held_out,
            "trained_block_length": options.block_length,
        }
        save_sampler(directory, sampler, engine, report)
        _print_quality(console, report, directory)
        testing = request.prompts[-held_out:]
        curves = measure_curves(engine, testing, options, arguments.thresholds, sampler, request.batch_size)
    print_curves(console, curves)
    _write(arguments, report | curves, lambda path: draw_curves(path, curves))


def _sampler_settings(arguments: Namespace) -> tuple[SamplerShape, SamplerTraining]:
    with value_errors_as_user_errors():
        return (
            SamplerShape(arguments.width, arguments.layers, arguments.heads, arguments.components),
            SamplerTraining(arguments.steps, arguments.sampler_batch_size, arguments.learning_rate, arguments.seed),
        )


def _examples(
    engine: Engine, request: Request, options: DecodeOptions, held_out: int, console: Console
) -> tuple[Examples, Examples]:
    """To learn from, and of the last prompts, which are held out."""
    training, testing = request.prompts[:-held_out], request.prompts[-held_out:]
    with value_errors_as_user_errors():
        seen, unseen = (collect(engine, prompts, options, request.batch_size) for prompts in (training, testing))
    console.print(f"{len(seen)} states of {len(training)} prompts to learn from, {len(unseen)} of {held_out} held out")
    return seen, unseen


def _tell(console: Console, steps: int, step: int, loss: float) -> None:
    if step % _LOSS_EVERY == 0 or step == steps:
        console.print(f"step {step}: loss {loss:.4f}")


def _print_quality(console: Console, report: Figures, directory: Path) -> None:
    auc, plain = (shown(report[name], ".4f") for name in ("auc", "auc_of_confidence"))
    console.print(f"AUC on held-out blocks: {auc}; of the model's confidence: {plain}")
    console.print(f"saved in {directory}", soft_wrap=True)


def _request(arguments: Namespace, lengths: tuple[int, ...]) -> tuple[Request, list[DecodeOptions]]:
    """Prompts and checkpoint, and settings for each block length. What they ask for can be answered in every mode."""
    request = read_request(arguments)
    with value_errors_as_user_errors():
        settings = [
            DecodeOptions(arguments.max_new_tokens, block_length=length, stop_tokens=request.source.stop_tokens)
            for length in lengths
        ]
        check_request(request.source.description, request.prompts, "diffusion", settings[0])
    return request, settings


def _check_thresholds(thresholds: list[float] | tuple[float, ...]) -> None:
    with value_errors_as_user_errors():
        for threshold in thresholds:
            Threshold(threshold)


def _known_sampler(arguments: Namespace, request: Request) -> Path | None:
    """Where the trained sampler lies; None where there is none and nobody asked for one.

    Raises:
        UserError: `--sampler` names a directory without one.
    """
    directory = sampler_directory(arguments, request.source)
    if arguments.sampler is None and not directory.is_dir():
        return None
    require_sampler(directory)
    return directory


def _held_out(arguments: Namespace, prompts: int) -> int:
    """How many prompts, the last ones, the sampler does not learn from."""
    if not 0 < arguments.held_out < 1:
        raise UserError(f"--held-out: {arguments.held_out} is not between 0 and 1")
    if prompts < 2:
        raise UserError("--prompts: a sampler needs at least 2 prompts, one to learn from and one to be judged on")
    return min(prompts - 1, max(1, round(arguments.held_out * prompts)))


def _write(arguments: Namespace, content: Figures, draw: Callable[[str], None]) -> None:
    write_json(arguments.json, content)
    if arguments.plot is not None:
        draw(arguments.plot)
