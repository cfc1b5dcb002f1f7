"""`nld-acceptance`: accepted length by category of prompts, mode and block length."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nld_train.decoding import CommitPolicy, DecodeOptions, DecodeResult, Engine, Mode
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import check_request
from nld_train.decoding.algorithms.outputs import Observer
from nld_train.decoding.algorithms.statistics import decoding_figures, merged, one_sequence
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
from nld_train.evaluation.by_category import (
    CATEGORIES,
    FOUR,
    MEAN_OF_FOUR,
    MEANS,
    category_means,
    missing_of_speed_bench,
)
from nld_train.evaluation.categories import Conversation, Question, read_questions
from nld_train.evaluation.measure import Figures, decoding_progress, shown
from nld_train.results import check_result_files, give_result

OVERALL = "overall"
_ROWS = {OVERALL: f"{OVERALL}, pooled"}
_SHOWN = ("accepted_length", "tokens_per_forward")


@dataclass(frozen=True)
class AcceptanceVariant:
    """A decode mode with its options."""

    mode: Mode
    options: DecodeOptions


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.acceptance` has parsed.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read.
    """
    check_result_files(arguments)
    check_batch_size(arguments)
    questions = read_questions(Path(arguments.prompts))
    _refuse_reserved(questions)
    source = source_of(arguments)
    policy = policy_of(arguments, source)
    variants = _variants(arguments, source)
    first = [Conversation(question, source.tokenizer).prompt(0) for question in questions]
    for variant in variants:
        with value_errors_as_user_errors():
            check_request(source.description, first, variant.mode, variant.options)
    with source.open() as engine:
        report = measure_acceptance(engine, source, questions, variants, policy, arguments.batch_size)
    give_result(arguments, report, lambda: print_acceptance(report_console(), report))


def _variants(arguments: Namespace, source: Source) -> list[AcceptanceVariant]:
    """Every mode at every block length; linear without and, with `--adapter`, also with the adapter.

    Raises:
        UserError: an option out of its range.
    """
    modes = [(mode, False) for mode in arguments.modes]
    if arguments.adapter:
        modes.insert(modes.index(("linear", False)) + 1, ("linear", True))
    with value_errors_as_user_errors():
        return [
            AcceptanceVariant(
                mode,
                DecodeOptions(
                    arguments.max_new_tokens, block_length=length, stop_tokens=source.stop_tokens, adapter=adapter
                ),
            )
            for mode, adapter in modes
            for length in arguments.block_lengths or arguments.default_block_lengths
        ]


def measure_acceptance(
    engine: Engine,
    source: Source,
    questions: Sequence[Question],
    variants: Sequence[AcceptanceVariant],
    policy: PolicyOf,
    batch_size: int,
) -> Figures:
    """Answers all questions with every variant.

    Returns:
        `variants`: for each its `mode`, `block_length`, `adapter` and `categories`: for each category, and for all
        turns pooled under `overall`, `accepted_length` (tokens per verification pass: accepted drafts and the bonus
        token; positions per denoising pass in diffusion), `tokens_per_forward`, `turns`, `new_tokens` and
        `skipped_turns`, those that did not fit into the context with their answers after the turns before; and
        the unweighted means of the first two over categories that `by_category.category_means` returns.
    """
    return {"variants": [_measure(engine, source, questions, variant, policy, batch_size) for variant in variants]}


def _measure(
    engine: Engine,
    source: Source,
    questions: Sequence[Question],
    variant: AcceptanceVariant,
    policy: PolicyOf,
    batch_size: int,
) -> Figures:
    chosen = policy(engine) if variant.mode == "diffusion" else None
    results: dict[str, list[DecodeResult]] = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    conversations = [Conversation(question, source.tokenizer) for question in questions]
    turns = sum(len(question.turns) for question in questions)
    what = f"{variant.mode}, blocks of {variant.options.block_length}"
    with decoding_progress(what, turns, variant.options.max_new_tokens) as observer:
        for category, result in _converse(engine, conversations, variant, chosen, batch_size, observer):
            if result is None:
                skipped[category] += 1
            else:
                results[category].append(result)
    categories = _by_category(questions, results, skipped)
    return {
        "mode": variant.mode,
        "block_length": variant.options.block_length,
        "adapter": variant.options.adapter,
        CATEGORIES: categories,
        **category_means({name: figures for name, figures in categories.items() if name != OVERALL}),
    }


def _converse(
    engine: Engine,
    conversations: Sequence[Conversation],
    variant: AcceptanceVariant,
    policy: CommitPolicy | None,
    batch_size: int,
    observer: Callable[[], Observer],
) -> Iterator[tuple[str, DecodeResult | None]]:
    """Decodes turn after turn of all conversations; yields category and result of each, None if it did not fit."""
    for turn in range(max(len(conversation.question.turns) for conversation in conversations)):
        active = [conversation for conversation in conversations if turn < len(conversation.question.turns)]
        prompts = [conversation.prompt(turn) for conversation in active]
        fits = [len(prompt) + variant.options.max_new_tokens <= engine.context_length for prompt in prompts]
        for conversation, fit in zip(active, fits, strict=True):
            if not fit:
                yield conversation.question.category, None
        active = [conversation for conversation, fit in zip(active, fits, strict=True) if fit]
        prompts = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        if not prompts:
            continue
        result = decode(engine, prompts, variant.mode, variant.options, policy, observer(), batch_size)
        for index, conversation in enumerate(active):
            conversation.add_answer(result.token_ids[index])
            yield conversation.question.category, one_sequence(result, index)


def _by_category(
    questions: Sequence[Question], results: dict[str, list[DecodeResult]], skipped: dict[str, int]
) -> dict[str, Figures]:
    names = list(dict.fromkeys(question.category for question in questions))
    found = {name: _figures(results[name], skipped[name]) for name in names}
    return {**found, OVERALL: _figures([one for name in names for one in results[name]], sum(skipped.values()))}


def _refuse_reserved(questions: Sequence[Question]) -> None:
    for question in questions:
        if question.category == OVERALL:
            raise UserError(f"{question.where}: the category {OVERALL!r} is the report's name for all; use another")


def _figures(results: list[DecodeResult], skipped: int) -> Figures:
    return {**decoding_figures(merged(results)), "turns": len(results), "skipped_turns": skipped}


def print_acceptance(console: Console, report: Figures) -> None:
    """Prints a table per mode, a row per category: accepted length and tokens per forward at each block length."""
    for name, group in groupby(report["variants"], key=_name):
        variants = list(group)
        lengths = [f"B = {variant['block_length']}" for variant in variants]
        table = Table("category", "turns", *map(numeric, lengths * len(_SHOWN)), caption=_caption(variants[0]))
        for category, figures in variants[0][CATEGORIES].items():
            if category == OVERALL:
                table.add_section()
                for key, title in _means(variants[0]).items():
                    table.add_row(title, "", *_cells([variant[key] for variant in variants]))
            cells = _cells([variant[CATEGORIES][category] for variant in variants])
            table.add_row(_ROWS.get(category, category), str(figures["turns"]), *cells)
        console.print(f"{name}: accepted length, then tokens per forward", table, sep="\n")


def _means(variant: Figures) -> dict[str, str]:
    """The means that a variant has, with the number of their categories as the names of their rows."""
    decoded = sum(bool(figures["turns"]) for name, figures in variant[CATEGORIES].items() if name != OVERALL)
    rows = zip(MEANS, (f"mean over {decoded}", f"mean over {len(FOUR)}"), strict=True)
    return {key: row for key, row in rows if key in variant}


def _caption(variant: Figures) -> str | None:
    """Which categories the second mean is over, and which of SPEED-Bench's the first one lacks."""
    categories = {name: figures for name, figures in variant[CATEGORIES].items() if name != OVERALL}
    lines = [f"mean over {len(FOUR)}: {', '.join(FOUR)}"] if MEAN_OF_FOUR in variant else []
    if missing := missing_of_speed_bench(categories):
        lines.append(f"missing of SPEED-Bench: {', '.join(missing)}")
    return "\n".join(lines) or None


def _cells(figures: Sequence[Figures]) -> list[str]:
    """The figures of a row at each block length: all of the first key, then all of the next."""
    return [shown(one.get(key)) for key in _SHOWN for one in figures]


def _name(variant: Figures) -> str:
    return f"{variant['mode']} + adapter" if variant["adapter"] else str(variant["mode"])
