"""`nld-exact`: how many questions with one right answer each decode mode answers exactly, by kind of question."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nld_train.data.records import parse_record
from nld_train.decoding import DecodeOptions, DecodeResult, Engine, Mode
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import BlockStart, check_request
from nld_train.decoding.algorithms.statistics import tokens_per_forward
from nld_train.decoding.command_line.prompts import Line, Prompt, checked_messages, lines_of
from nld_train.decoding.command_line.request import (
    PolicyOf,
    PromptEncoder,
    chat_format_of,
    check_batch_size,
    policy_of,
    source_of,
    value_errors_as_user_errors,
)
from nld_train.decoding.command_line.terminal import numeric, report_console
from nld_train.decoding.load import Source
from nld_train.errors import UserError
from nld_train.evaluation.by_category import selected
from nld_train.evaluation.measure import Figures, decoding_progress, shown
from nld_train.evaluation.right_answers import ExactMatch
from nld_train.results import check_result_files, give_result

ALL = "all"


@dataclass(frozen=True)
class ExactQuestion:
    """A conversation up to its last answer, and that answer.

    Attributes:
        prompt: ids, the generation prompt included, with its pictures where it has some.
        answer: the only right text.
        kind: of question.
    """

    prompt: Sequence[int]
    answer: str
    kind: str


@dataclass(frozen=True)
class ExactVariant:
    """A decode mode with its options, and its name in the report."""

    name: str
    mode: Mode
    options: DecodeOptions


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.exact` has parsed.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read.
    """
    check_result_files(arguments)
    check_batch_size(arguments)
    lines = _conversations(Path(arguments.prompts))
    source = source_of(arguments)
    encoder = PromptEncoder(chat_format_of(arguments, source))
    questions = [_question(line, encoder, str(Path(arguments.prompts).parent)) for line in lines]
    prompts = [question.prompt for question in questions]
    with value_errors_as_user_errors():
        variants = _variants(arguments, source)
        for variant in variants:
            check_request(source.description, prompts, variant.mode, variant.options)
    policy = policy_of(arguments, source)
    with source.open() as engine:
        found = measure_exact(engine, source.tokenizer, questions, variants, policy, arguments.batch_size)
    give_result(arguments, found, lambda: print_exact(report_console(), found))


def _variants(arguments: Namespace, source: Source) -> list[ExactVariant]:
    """Every mode; with `--adapter` also linear with it, with `--ar-weight` also quadratic as an ensemble.

    Raises:
        ValueError: an option out of its range.
    """
    plain = DecodeOptions(
        arguments.max_new_tokens,
        block_length=arguments.block_length or source.block_length,
        stop_tokens=source.stop_tokens,
    )
    found = []
    for mode in arguments.modes:
        start: BlockStart | None = arguments.block_start if mode == "diffusion" else None
        found.append(ExactVariant(mode, mode, replace(plain, block_start=start)))
        if mode == "linear" and arguments.adapter:
            found.append(ExactVariant("linear + adapter", mode, replace(plain, adapter=True)))
        if mode == "quadratic" and arguments.ar_weight not in (None, 1):
            name = f"quadratic, AR weight {arguments.ar_weight:g}"
            found.append(ExactVariant(name, mode, replace(plain, ar_weight=arguments.ar_weight)))
    return found


def _conversations(path: Path) -> list[Line]:
    kind, lines = lines_of(path)
    if kind != "jsonl":
        raise UserError(f"--prompts {path}: must be JSONL, a conversation on each line")
    return lines


def _question(line: Line, encoder: PromptEncoder, folder: str) -> ExactQuestion:
    record = parse_record(line.text, line.where)
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise UserError(f"{line.where}: must be an object with a conversation under 'messages'")
    answer = messages[-1].get("content")
    if messages[-1].get("role") != "assistant" or not isinstance(answer, str):
        raise UserError(f"{line.where}: the last message must be the assistant's, with the right answer as its text")
    kind = record.get("kind", ALL)
    if not isinstance(kind, str):
        raise UserError(f"{line.where}: 'kind' must be a text")
    before = checked_messages(messages[:-1], line.where)
    asked = Prompt(line.where, messages=before, folder=folder)
    return ExactQuestion(encoder.encode(asked)[1], answer, kind)


def measure_exact(
    engine: Engine,
    tokenizer: Any,
    questions: Sequence[ExactQuestion],
    variants: Sequence[ExactVariant],
    policy: PolicyOf,
    batch_size: int,
) -> Figures:
    """Answers all questions with every variant.

    Args:
        engine: the model.
        tokenizer: of `transformers`.
        questions: at least one.
        variants: to decode with: greedy, with the stop tokens that end an answer.
        policy: of diffusion.
        batch_size: maximum number of active sequences.

    Returns:
        By the name of the variant, and in it by kind of question and for `all`: `exact`, the share of answers that are
        right; `tokens_per_forward`; and the counts `questions`, `new_tokens` and `forwards`. The token that ends an
        answer is a new token, what a block has after it is none.
    """
    chosen = policy(engine) if any(variant.mode == "diffusion" for variant in variants) else None
    found: Figures = {}
    most = variants[0].options.max_new_tokens
    with decoding_progress("questions", len(variants) * len(questions), most) as observer:
        for variant in variants:
            prompts = [question.prompt for question in questions]
            used, options = chosen if variant.mode == "diffusion" else None, variant.options
            result = decode(engine, prompts, variant.mode, options, used, observer(), batch_size)
            found[variant.name] = scores(ExactMatch(options.stop_tokens, tokenizer), questions, result)
    return found


def scores(match: ExactMatch, questions: Sequence[ExactQuestion], result: DecodeResult) -> Figures:
    """The figures of one mode, by kind of question and for `all`; see `measure_exact`."""
    right = match.right(result.token_ids, [question.answer for question in questions])

    def figures(kind: str) -> Figures:
        indices = [index for index, question in enumerate(questions) if kind in (ALL, question.kind)]
        part = selected(result, indices)
        return {
            "exact": sum(right[index] for index in indices) / len(indices),
            "tokens_per_forward": tokens_per_forward(part),
            "questions": len(indices),
            "new_tokens": sum(part.new_tokens),
            "forwards": sum(part.sequence_forwards),
        }

    return {kind: figures(kind) for kind in dict.fromkeys([ALL, *(question.kind for question in questions)])}


def _cell(figures: Figures) -> str:
    return f"{shown(figures['exact'], '.0%')} at {shown(figures['tokens_per_forward'], '.1f')}"


def print_exact(console: Console, found: Figures) -> None:
    """Prints a table: a row per kind, for each mode exact answers and tokens per forward; 80 columns for all modes."""
    table = Table("questions", *map(numeric, found), caption="exact answers, and tokens per forward")
    first = next(iter(found.values()))
    for kind in [kind for kind in first if kind != ALL] + [ALL]:
        if kind == ALL:
            table.add_section()
        table.add_row(kind, *(_cell(by_kind[kind]) for by_kind in found.values()))
    console.print(table)
