"""`nld-sampler`: trains a sampler on most of the prompts, evaluates it on the others, and saves it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from nld_train.decoding import DecodeOptions
from nld_train.decoding.command_line.request import Request, value_errors_as_user_errors
from nld_train.decoding.command_line.terminal import report_console
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.policies.sampler_files import check_directory, embedding_of, sampler_directory, save_sampler
from nld_train.decoding.policies.sampler_network import SamplerShape
from nld_train.errors import UserError
from nld_train.evaluation.measure import Figures, shown
from nld_train.evaluation.reports import give_report, read_report_request
from nld_train.evaluation.sampler_data import Examples, collect
from nld_train.evaluation.sampler_training import SamplerTraining, principal_components, quality, train_sampler
from nld_train.evaluation.threshold_curve import draw_curves, measure_curves, print_curves

_LOSS_EVERY = 100


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.sampler` has parsed.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read; or trajectories without a mask.
    """
    shape, settings = _sampler_settings(arguments)
    request, (options,) = read_report_request(arguments, [arguments.block_length], arguments.thresholds)
    held_out = _held_out(arguments, len(request.prompts))
    directory = sampler_directory(arguments.sampler, request.source.directory)
    check_directory(directory)
    # Of the training; standard output is for the JSON alone where it is asked for.
    console = report_console(errors=arguments.json)
    with request.source.open() as engine:
        seen, unseen = _examples(engine, request, options, held_out, console)
        table = principal_components(embedding_of(engine), shape.components)
        sampler = train_sampler(shape, table, seen, settings, partial(_print_loss, console, settings.steps))
        report = quality(sampler, unseen) | {
            "prompts": len(request.prompts) - held_out,
            "held_out_prompts": held_out,
            "trained_block_length": options.block_length,
        }
        save_sampler(directory, sampler, engine, report)
        _print_quality(console, report, directory)
        testing = replace(request, prompts=request.prompts[-held_out:], categories=list(request.categories)[-held_out:])
        curves = measure_curves(engine, testing, options, arguments.thresholds, sampler)
    give_report(
        arguments, report | curves, lambda: print_curves(console, curves), lambda path: draw_curves(path, curves)
    )


def _sampler_settings(arguments: Namespace) -> tuple[SamplerShape, SamplerTraining]:
    with value_errors_as_user_errors():
        return (
            SamplerShape(arguments.width, arguments.layers, arguments.heads, arguments.components),
            SamplerTraining(arguments.steps, arguments.sampler_batch_size, arguments.learning_rate, arguments.seed),
        )


def _held_out(arguments: Namespace, prompts: int) -> int:
    """The number of prompts, the last ones, that are held out for the evaluation."""
    if not 0 < arguments.held_out < 1:
        raise UserError(f"--held-out: {arguments.held_out} is not between 0 and 1")
    if prompts < 2:
        raise UserError("--prompts: a sampler needs at least 2 prompts, one to train on and one to evaluate on")
    return min(prompts - 1, max(1, round(arguments.held_out * prompts)))


def _examples(
    engine: Engine, request: Request, options: DecodeOptions, held_out: int, console: Console
) -> tuple[Examples, Examples]:
    """Training examples, and examples of the last prompts, which are held out."""
    training, testing = request.prompts[:-held_out], request.prompts[-held_out:]
    with value_errors_as_user_errors():
        seen, unseen = (collect(engine, prompts, options, request.batch_size) for prompts in (training, testing))
    console.print(f"{len(seen)} states of {len(training)} prompts to train on, {len(unseen)} of {held_out} held out")
    return seen, unseen


def _print_loss(console: Console, steps: int, step: int, loss: float) -> None:
    if step % _LOSS_EVERY == 0 or step == steps:
        console.print(f"step {step}: loss {loss:.4f}")


def _print_quality(console: Console, report: Figures, directory: Path) -> None:
    auc, plain = (shown(report[name], ".4f") for name in ("auc", "auc_of_confidence"))
    console.print(f"AUC on held-out blocks: {auc}; of the model's confidence: {plain}")
    console.print(f"saved in {directory}", soft_wrap=True)
