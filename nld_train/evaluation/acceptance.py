"""Acceptance length by category of prompts, mode and block length."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, Engine, Mode
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import check_request
from nld_train.decoding.algorithms.statistics import accepted_per_cycle, merged, one_sequence, tokens_per_forward
from nld_train.decoding.command_line.request import (
    PolicyOf,
    check_batch_size,
    policy_of,
    source_of,
    value_errors_as_user_errors,
)
from nld_train.decoding.command_line.terminal import numeric, report_console
from nld_train.decoding.load import Source
from nld_train.errors import UserError
from nld_train.evaluation.categories import Conversation, Question, read_questions
from nld_train.evaluation.measure import Figures, check_writable, shown, write_json

OVERALL = "overall"
_SHOWN = ("acceptance_length", "tokens_per_forward")


@dataclass(frozen=True)
class Reading:
    """One way to answer: mode and options of the decoder."""

    mode: Mode
    options: DecodeOptions


def run(arguments: Namespace) -> None:
    """`nld-acceptance`: what `nld_train.commands.acceptance` has parsed.

    Raises:
        UserError: a request that cannot be answered, found before any weight is read.
    """
    check_writable(arguments.json)
    check_batch_size(arguments)
    questions = read_questions(Path(arguments.prompts))
    source = source_of(arguments)
    policy = policy_of(arguments, source)
    readings = _readings(arguments, source)
    first = [Conversation(question, source.tokenizer).ask(0) for question in questions]
    for reading in readings:
        with value_errors_as_user_errors():
            check_request(source.description, first, reading.mode, reading.options)
    with source.open() as engine:
        report = measure_acceptance(engine, source, questions, readings, policy, arguments.batch_size)
    print_acceptance(report_console(), report)
    write_json(arguments.json, report)


def _readings(arguments: Namespace, source: Source) -> list[Reading]:
    """Linear comes without the adapter and, where one is wanted, with it.

    Raises:
        UserError: an adapter that no mode would draft with.
    """
    if arguments.adapter and "linear" not in arguments.modes:
        raise UserError("--adapter: only linear drafts with one; add it to --modes")
    ways = [(mode, False) for mode in arguments.modes]
    if arguments.adapter and "linear" in arguments.modes:
        ways.insert(ways.index(("linear", False)) + 1, ("linear", True))
    with value_errors_as_user_errors():
        return [
            Reading(
                mode,
                DecodeOptions(
                    arguments.max_new_tokens, block_length=length, stop_tokens=source.stop_tokens, adapter=adapter
                ),
            )
            for mode, adapter in ways
            for length in arguments.block_lengths
        ]


def measure_acceptance(
    engine: Engine,
    source: Source,
    questions: Sequence[Question],
    readings: Sequence[Reading],
    policy: PolicyOf,
    batch_size: int,
) -> Figures:
    """Answers all questions in every way.

    Returns:
        `readings`: for each its `mode`, `block_length`, `adapter` and `categories`: for each category, and for
        all turns under `overall`, `acceptance_length` (tokens per verify pass: accepted drafts and the AR token after
        them; positions per denoising pass in diffusion), `tokens_per_forward`, `turns`, `new_tokens` and
        `skipped_turns`, those that the conversation before them left no room for.
    """
    return {"readings": [_measure(engine, source, questions, reading, policy, batch_size) for reading in readings]}


def _measure(
    engine: Engine,
    source: Source,
    questions: Sequence[Question],
    reading: Reading,
    policy: PolicyOf,
    batch_size: int,
) -> Figures:
    chosen = policy(engine) if reading.mode == "diffusion" else None
    results: dict[str, list[DecodeResult]] = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    conversations = [Conversation(question, source.tokenizer) for question in questions]
    for category, result in _converse(engine, conversations, reading, chosen, batch_size):
        if result is None:
            skipped[category] += 1
        else:
            results[category].append(result)
    return {
        "mode": reading.mode,
        "block_length": reading.options.block_length,
        "adapter": reading.options.adapter,
        "categories": _by_category(questions, results, skipped),
    }


def _converse(
    engine: Engine,
    conversations: Sequence[Conversation],
    reading: Reading,
    policy: CommitPolicy | None,
    batch_size: int,
) -> Iterator[tuple[str, DecodeResult | None]]:
    """Turn after turn of all conversations together: category and result of each, None where there was no room."""
    for turn in range(max(len(conversation.question.turns) for conversation in conversations)):
        asked = [conversation for conversation in conversations if turn < len(conversation.question.turns)]
        prompts = [conversation.ask(turn) for conversation in asked]
        fits = [len(prompt) < engine.context_length for prompt in prompts]
        for conversation, room in zip(asked, fits, strict=True):
            if not room:
                yield conversation.question.category, None
        asked = [conversation for conversation, room in zip(asked, fits, strict=True) if room]
        prompts = [prompt for prompt, room in zip(prompts, fits, strict=True) if room]
        if not prompts:
            continue
        result = decode(engine, prompts, reading.mode, reading.options, policy, batch_size=batch_size)
        for row, conversation in enumerate(asked):
            conversation.answer(result.token_ids[row])
            yield conversation.question.category, one_sequence(result, row)


def _by_category(
    questions: Sequence[Question], results: dict[str, list[DecodeResult]], skipped: dict[str, int]
) -> dict[str, Figures]:
    names = list(dict.fromkeys(question.category for question in questions))
    found = {name: _figures(results[name], skipped[name]) for name in names}
    return {**found, OVERALL: _figures([one for name in names for one in results[name]], sum(skipped.values()))}


def _figures(results: list[DecodeResult], skipped: int) -> Figures:
    result = merged(results)
    return {
        "acceptance_length": accepted_per_cycle(result),
        "tokens_per_forward": tokens_per_forward(result),
        "turns": len(results),
        "new_tokens": sum(result.new_tokens),
        "skipped_turns": skipped,
    }


def print_acceptance(console: Console, report: Figures) -> None:
    """A table per way to draft, a line per category: acceptance length and tokens per forward at each block length."""
    for name, group in groupby(report["readings"], key=_way):
        readings = list(group)
        lengths = [f"B = {reading['block_length']}" for reading in readings]
        table = Table("category", "turns", *map(numeric, lengths * len(_SHOWN)))
        for category, figures in readings[0]["categories"].items():
            if category == OVERALL:
                table.add_section()
            cells = (shown(reading["categories"][category][key]) for key in _SHOWN for reading in readings)
            table.add_row(category, str(figures["turns"]), *cells)
        console.print(f"{name}: acceptance length, then tokens per forward", table, sep="\n")


def _way(reading: Figures) -> str:
    return f"{reading['mode']} + adapter" if reading["adapter"] else str(reading["mode"])
