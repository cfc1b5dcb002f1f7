"""Prompts of a run, decoded by its newest checkpoint in every mode that its stage trains, for the page."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nld_train.config.compose import default_config
from nld_train.config.schema import Config
from nld_train.config.stage_kinds import kind_of
from nld_train.data.chat.prompt import ChatFormat
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import DecodeOptions, check_request
from nld_train.decoding.command_line.observers import Observers, TokenCounter
from nld_train.decoding.command_line.prompts import Prompt, read_prompts
from nld_train.decoding.command_line.request import PromptEncoder, value_errors_as_user_errors
from nld_train.decoding.load import Source, find_source
from nld_train.decoding.policies.threshold import Threshold
from nld_train.evaluation.held_out import held_out_of
from nld_train.printable import printable
from nld_train.progress import Advance, progress_bar
from nld_train.report_page.playback import Recorder, playback
from nld_train.training.checkpoint.contents import Progress, read_progress, saved_config
from nld_train.training.stages.kind import EvaluatedVariant

# Held-out prompts that are shown where the command line names none.
_SHOWN = 4


@dataclass(frozen=True)
class _Job:
    """A checkpoint, prompts for it, and the settings to decode them with."""

    source: Source
    progress: Progress
    texts: list[str]
    prompts: Sequence[Sequence[int]]
    variants: tuple[EvaluatedVariant, ...]
    most: int
    threshold: float

    def options(self, variant: EvaluatedVariant) -> DecodeOptions:
        return DecodeOptions(
            max_new_tokens=self.most,
            block_length=variant.block_length,
            stop_tokens=self.source.stop_tokens,
            adapter=variant.adapter,
        )


def decoded_texts(arguments: Namespace) -> dict[str, Any]:
    """The prompts of a command line of `nld-report`, or held-out ones of the run, decoded: what the page plays back.

    Returns:
        `step` and `stage` of the checkpoint, `maxNewTokens`, `threshold`, and the `prompts`: each its `text`, and under
        `modes` what `playback` returns.

    Raises:
        UserError: there is no checkpoint, no prompt can be read, or one does not fit.
    """
    job = _read_job(arguments)
    with value_errors_as_user_errors():
        for variant in job.variants:
            check_request(job.source.description, job.prompts, variant.mode, job.options(variant))
    total = len(job.variants) * len(job.prompts) * job.most
    with progress_bar("decoding", total) as advance:
        shown = _decode_all(job, advance)
    return {
        "step": job.progress.step,
        "stage": job.progress.stage,
        "maxNewTokens": job.most,
        "threshold": job.threshold,
        "prompts": [
            {"text": printable(text), "modes": {name: played[index] for name, played in shown.items()}}
            for index, text in enumerate(job.texts)
        ],
    }


def _read_job(arguments: Namespace) -> _Job:
    source = find_source(arguments.directory, arguments.tokenizer)
    progress = read_progress(source.directory)
    config = saved_config(source.directory, default_config())
    texts, prompts = _prompts(arguments, source, config, progress.stage)
    stage = config.stages[progress.stage]
    variants = kind_of(stage).decode_variants(config, stage)
    return _Job(
        source,
        progress,
        texts,
        prompts,
        variants or (EvaluatedVariant("ar", "ar", config.evaluation.block_length),),
        config.evaluation.max_new_tokens if arguments.max_new_tokens is None else arguments.max_new_tokens,
        config.evaluation.threshold if arguments.threshold is None else arguments.threshold,
    )


def _prompts(
    arguments: Namespace, source: Source, config: Config, stage: str
) -> tuple[list[str], Sequence[Sequence[int]]]:
    """Texts and ids: those of the command line, else some of those that the decoding hook decodes in the stage."""
    given = _given_prompts(arguments)
    if given:
        encoder = PromptEncoder(ChatFormat(source.tokenizer, pictures=source.pictures), arguments.chat)
        encoded = [encoder.encode(prompt) for prompt in given]
        return [text for text, _ in encoded], [ids for _, ids in encoded]
    prompts = _spread(held_out_of(config, stage).prompts, _SHOWN)
    return [str(source.tokenizer.decode(list(ids))) for ids in prompts], prompts


def _given_prompts(arguments: Namespace) -> list[Prompt]:
    if arguments.prompts is not None:
        return read_prompts(Path(arguments.prompts))
    return [] if arguments.prompt is None else [Prompt("--prompt", arguments.prompt)]


def _spread(prompts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
    """At most so many, evenly over all: the first ones can be of one kind."""
    count = min(count, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _decode_all(job: _Job, advance: Advance) -> dict[str, list[dict[str, Any]]]:
    """By name of the variant, every prompt played back."""

    def text(token_ids: Sequence[int]) -> str:
        return printable(str(job.source.tokenizer.decode(token_ids)))

    shown: dict[str, list[dict[str, Any]]] = {}
    with job.source.open() as engine:
        for variant in job.variants:
            recorder = Recorder()
            policy = Threshold(job.threshold) if variant.mode == "diffusion" else None
            observer = Observers(recorder, TokenCounter(advance, job.most))
            decode(engine, job.prompts, variant.mode, job.options(variant), policy, observer)
            states = (recorder.states[index] for index in range(len(job.prompts)))
            shown[variant.name] = [playback(variant.mode, each, text) for each in states]
    return shown
