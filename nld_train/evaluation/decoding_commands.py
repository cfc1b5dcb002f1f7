"""What `nld-curve`, `nld-bound` and `nld-sampler` do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from nld_train.decoding import CommitPolicy, DecodeOptions, Threshold
from nld_train.decoding.engine import Engine
from nld_train.decoding.options import check_request
from nld_train.decoding.request import Request, in_one_line, read_request, sampler_directory
from nld_train.decoding.sampler_files import embedding_of, load_sampler, require_sampler, save_sampler
from nld_train.decoding.trained_sampler import SamplerPolicy, SamplerShape
from nld_train.errors import UserError
from nld_train.evaluation.measure import check_writable, write_json
from nld_train.evaluation.sampler_data import collect
from nld_train.evaluation.sampler_training import (
    SamplerTraining,
    area_under_curve,
    confidence,
    judged,
    principal_components,
    train_sampler,
)
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
    print_curves(_console(), measured)
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
    print_bound(_console(), bounds)
    _write(arguments, {"bounds": bounds}, lambda path: draw_bound(path, bounds))


def run_sampler(arguments: Namespace) -> None:
    """`nld-sampler`: trains the sampler on most of the prompts, judges it on the others, and saves it.

    Raises:
        UserError: a request that cannot be answered, found before any weight is read; or trajectories without a mask.
    """
    check_writable(arguments.json, arguments.plot)
    _check_thresholds(arguments.thresholds)
    with in_one_line():
        shape = SamplerShape(arguments.width, arguments.layers, arguments.heads, arguments.components)
        settings = SamplerTraining(
            arguments.steps, arguments.sampler_batch_size, arguments.learning_rate, arguments.seed
        )
    request, (options,) = _request(arguments, (arguments.block_length,))
    held_out = _held_out(arguments, len(request.prompts))
    with request.source.open() as engine:
        report = _train_and_judge(engine, request, options, held_out, shape, settings, arguments)
    _write(arguments, report, lambda path: draw_curves(path, report))


def _train_and_judge(
    engine: Engine,
    request: Request,
    options: DecodeOptions,
    held_out: int,
    shape: SamplerShape,
    settings: SamplerTraining,
    arguments: Namespace,
) -> dict[str, Any]:
    console = _console()
    training, testing = request.prompts[:-held_out], request.prompts[-held_out:]
    with in_one_line():
        examples = collect(engine, training, options, request.batch_size)
        unseen = collect(engine, testing, options, request.batch_size)
    console.print(f"{len(examples)} states to learn from, {len(unseen)} held out, of {held_out} prompts")

    def tell(step: int, loss: float) -> None:
        if step % _LOSS_EVERY == 0 or step == settings.steps:
            console.print(f"step {step}: loss {loss:.4f}")

    table = principal_components(embedding_of(engine), shape.components)
    sampler = train_sampler(shape, table, examples, settings, tell)
    labels = unseen.labels[unseen.wanted]
    quality = {
        "auc": area_under_curve(judged(sampler, unseen), labels),
        "auc_of_confidence": area_under_curve(confidence(unseen), labels),
        "positions": len(labels),
        "share_right": float(labels.float().mean()),
        "parameters": sum(parameter.numel() for parameter in sampler.parameters()),
        "prompts": len(training),
        "held_out_prompts": held_out,
        "trained_block_length": options.block_length,
    }
    directory = sampler_directory(arguments, request.source)
    save_sampler(directory, sampler, engine, quality)
    auc, plain = quality["auc"], quality["auc_of_confidence"]
    if auc is not None:
        console.print(f"AUC on held-out blocks: {auc:.4f}; of the model's confidence: {plain:.4f}")
    console.print(f"saved in {directory}", soft_wrap=True)
    curves = measure_curves(engine, testing, options, arguments.thresholds, sampler, request.batch_size)
    print_curves(console, curves)
    return {**quality, **curves}


def _request(arguments: Namespace, lengths: tuple[int, ...]) -> tuple[Request, list[DecodeOptions]]:
    """Prompts and checkpoint, and settings for each block length; both were checked in every mode."""
    request = read_request(arguments)
    with in_one_line():
        settings = [
            DecodeOptions(arguments.max_new_tokens, block_length=length, stop_tokens=request.source.stop_tokens)
            for length in lengths
        ]
        check_request(request.source.description, request.prompts, "diffusion", settings[0])
    return request, settings


def _check_thresholds(thresholds: list[float] | tuple[float, ...]) -> None:
    with in_one_line():
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


def _console() -> Console:
    return Console(highlight=False)


def _write(arguments: Namespace, content: dict[str, Any], draw: Callable[[str], None]) -> None:
    write_json(arguments.json, content)
    if arguments.plot is not None:
        draw(arguments.plot)
