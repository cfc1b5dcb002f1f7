"""`nld-sampler`: trains a sampler on most of the prompts, stops and evaluates it on others, and saves it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from nld_train.decoding import DecodeOptions
from nld_train.decoding.command_line.request import value_errors_as_user_errors
from nld_train.decoding.command_line.terminal import report_console
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.policies.sampler_files import check_directory, embedding_of, sampler_directory, save_sampler
from nld_train.decoding.policies.sampler_network import SamplerShape
from nld_train.errors import UserError
from nld_train.evaluation.measure import Figures, shown
from nld_train.evaluation.reports import ReportRequest, give_report, read_report_request
from nld_train.evaluation.sampler_training import (
    BestOnHeldOut,
    SamplerTraining,
    component_table,
    quality,
    train_sampler,
)
from nld_train.evaluation.sampler_trajectories import Trajectories, collect_both
from nld_train.evaluation.threshold_curve import draw_curves, measure_curves, print_curves

_LOSS_EVERY = 100


@dataclass(frozen=True)
class Split:
    """Which prompts serve what: the first ones training, then some its end, and the last ones the report.

    Attributes:
        training: prompts to train on.
        held_out: prompts of each of the other two.
    """

    training: int
    held_out: int

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """The prompts to train on, those on which the training stops, and those of the report."""
        last = self.training + self.held_out
        return slice(0, self.training), slice(self.training, last), slice(last, last + self.held_out)


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.sampler` has parsed.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read; or trajectories without a mask.
    """
    shape, settings = _sampler_settings(arguments)
    lengths = [arguments.block_length, *arguments.trained_block_lengths]
    request, (options, *trained) = read_report_request(arguments, lengths, arguments.thresholds)
    split = _split(arguments, len(request.prompts))
    directory = sampler_directory(arguments.sampler, request.source.directory)
    check_directory(directory)
    # Of the training; standard output is for the JSON alone where it is asked for.
    console = report_console(errors=arguments.json)
    with request.source.open() as engine:
        found = [_trajectories(engine, request, trained, part) for part in split.parts]
        seen, stopping, unseen = (one.examples for one in found)
        _print_trajectories(console, found, split)
        table = component_table(embedding_of(engine), seen, shape.components, settings.seed)
        best = BestOnHeldOut(stopping, settings)
        sampler = train_sampler(shape, table, seen, settings, partial(_print_loss, console, settings.steps), best)
        report = quality(sampler, unseen) | {
            "prompts": split.training,
            "stopping_prompts": split.held_out,
            "held_out_prompts": split.held_out,
            "trained_block_lengths": list(arguments.trained_block_lengths),
            "trajectories": {"one_per_pass": found[0].one_per_pass, "true_text": found[0].true_text},
            "best_step": best.step,
            "auc_at_best_step": best.auc,
        }
        save_sampler(directory, sampler, engine, report)
        _print_quality(console, report, directory)
        last = split.parts[-1]
        testing = replace(request, prompts=request.prompts[last], categories=list(request.categories)[last])
        curves = measure_curves(engine, testing, options, arguments.thresholds, sampler)
    give_report(
        arguments, report | curves, lambda: print_curves(console, curves), lambda path: draw_curves(path, curves)
    )


def _sampler_settings(arguments: Namespace) -> tuple[SamplerShape, SamplerTraining]:
    if min(arguments.trained_block_lengths) < 2:
        raise UserError(
            f"--trained-block-lengths: {min(arguments.trained_block_lengths)} is not 2 or more; a sampler needs masks"
        )
    with value_errors_as_user_errors():
        return (
            SamplerShape(arguments.width, arguments.layers, arguments.heads, arguments.components),
            SamplerTraining(
                arguments.steps,
                arguments.sampler_batch_size,
                arguments.learning_rate,
                arguments.seed,
                arguments.evaluate_every,
                arguments.patience,
            ),
        )


def _split(arguments: Namespace, prompts: int) -> Split:
    if not 0 < arguments.held_out < 1:
        raise UserError(f"--held-out: {arguments.held_out} is not between 0 and 1")
    if prompts < 3:
        raise UserError(
            "--prompts: a sampler needs at least 3 prompts: to train on, to stop the training on, and to evaluate on"
        )
    held_out = min((prompts - 1) // 2, max(1, round(arguments.held_out * prompts)))
    return Split(prompts - 2 * held_out, held_out)


def _trajectories(
    engine: Engine, request: ReportRequest, settings: Sequence[DecodeOptions], part: slice
) -> Trajectories:
    prompts = request.prompts[part]
    # Files by category have no true text.
    continuations = list(request.continuations)[part] or [None] * len(prompts)
    with value_errors_as_user_errors():
        return collect_both(engine, prompts, continuations, settings, request.batch_size)


def _print_trajectories(console: Console, found: Sequence[Trajectories], split: Split) -> None:
    training, *others = found
    kinds = f"{training.one_per_pass} blocks with one token per pass, {training.true_text} towards the true text"
    sizes = " and ".join(str(len(one.examples)) for one in others)
    console.print(
        f"{len(training.examples)} states of {split.training} prompts to train on ({kinds}); {sizes} of "
        f"{split.held_out} prompts each to stop on and to evaluate on",
        soft_wrap=True,
    )
    if not training.true_text:
        console.print("the prompts name no true text (continuation_token_ids, which nld-data prompts writes)")


def _print_loss(console: Console, steps: int, step: int, loss: float) -> None:
    if step % _LOSS_EVERY == 0 or step == steps:
        console.print(f"step {step}: loss {loss:.4f}")


def _print_quality(console: Console, report: Figures, directory: Path) -> None:
    auc, plain = (shown(report[name], ".4f") for name in ("auc", "auc_of_confidence"))
    console.print(
        f"best on held-out blocks after step {report['best_step']}; AUC on blocks of yet other prompts: {auc}; of the "
        f"model's confidence: {plain}",
        soft_wrap=True,
    )
    console.print(f"saved in {directory}", soft_wrap=True)
