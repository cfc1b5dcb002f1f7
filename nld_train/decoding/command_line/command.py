"""`nld-decode`: reads prompts, opens a checkpoint, decodes, and shows the results."""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from nld_train.console import plain_console
from nld_train.decoding.algorithms.decode import decode
from nld_train.decoding.algorithms.options import check_request
from nld_train.decoding.algorithms.outputs import DecodeResult, Observer, Progress
from nld_train.decoding.algorithms.statistics import agreement, graph_share, tokens_per_forward
from nld_train.decoding.command_line.chat import talk
from nld_train.decoding.command_line.checks import talks
from nld_train.decoding.command_line.observers import InOrder, Observers, TokenCounter
from nld_train.decoding.command_line.records import Records, record_of
from nld_train.decoding.command_line.request import Request, policy_of, read_request, value_errors_as_user_errors
from nld_train.decoding.command_line.terminal import Watcher, numeric, print_sequence, report_console
from nld_train.decoding.command_line.variants import DecodeVariant, variants_of
from nld_train.decoding.engines.engine import Engine
from nld_train.decoding.layout import only_rank_zero_prints
from nld_train.decoding.mode_options import MAX_NEW_TOKENS
from nld_train.printable import printable
from nld_train.processes import rank
from nld_train.progress import progress_bar

# Longer than the line of any terminal.
_START_CHARACTERS = 200
_WARMING_TOKENS = 8


@dataclass(frozen=True)
class Decoded:
    """All prompts decoded in one variant, and the time.

    Attributes:
        result: their tokens.
        sequences: the final state of each.
        seconds: wall time with the prefills, without the time for showing them.
    """

    result: DecodeResult
    sequences: list[Progress]
    seconds: float

    @property
    def speed(self) -> float:
        """New tokens per second."""
        return sum(self.result.new_tokens) / self.seconds


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.commands.decode` has parsed.

    Raises:
        UserError: a request that cannot be fulfilled, found before any weight is read.
    """
    if talks(arguments):
        talk(arguments)
        return
    if arguments.max_new_tokens is None:
        arguments.max_new_tokens = MAX_NEW_TOKENS
    request = read_request(arguments)
    job = Job(request.source, request.texts, request.prompts, request.batch_size)
    with value_errors_as_user_errors():
        variants = variants_of(arguments, job.source, policy_of(arguments, job.source))
        for variant in variants:
            check_request(job.source.description, job.prompts, variant.mode, variant.options)
    show = job.compare if arguments.compare else job.show
    with job.source.open() as engine, only_rank_zero_prints():
        records = Records(arguments.json, arguments.output)
        show(engine, variants, records)
        records.write()


@dataclass(frozen=True)
class Job(Request):
    """A request and how its results are shown."""

    def show(self, engine: Engine, variants: list[DecodeVariant], records: Records) -> None:
        """Decodes in one variant; shows sequences while they grow, and prints them, or their JSON, when finished."""
        variant, console = variants[0], plain_console(soft_wrap=True)
        noted = InOrder(lambda ended: records.add(self._record(variant, ended)))
        if records.printed:
            self._decode(engine, variant, noted)
            return
        tokenizer, watcher = self.source.tokenizer, None
        if console.is_terminal:
            watcher = Watcher(console, tokenizer, variant.mode, self.texts)
        printed = InOrder(
            watcher.print
            if watcher
            else lambda ended: print_sequence(console, tokenizer, variant.mode, self.texts[ended.sequence], ended)
        )
        with watcher or nullcontext():
            decoded = self._decode(engine, variant, watcher, printed, noted)
        console.print(_summary(variant, decoded), style="dim")

    def compare(self, engine: Engine, variants: list[DecodeVariant], records: Records) -> None:
        """Decodes in every variant, AR first, and shows them side by side."""
        table = Table(Column("mode", no_wrap=True), "text", *map(numeric, ("tokens/forward", "tokens/s", "same as AR")))
        reference: list[list[int]] = []
        for number, variant in enumerate(variants, start=1):
            decoded = self._decode_shown(engine, variant, f"{variant.name} ({number} of {len(variants)})")
            token_ids = decoded.result.token_ids
            reference = reference or token_ids
            for ended in decoded.sequences:
                same = _same(variant, [list(ended.tokens)], [reference[ended.sequence]])
                records.add({**self._record(variant, ended), "agreement": same})
            same = _same(variant, token_ids, reference)
            figures = (
                f"{tokens_per_forward(decoded.result):.2f}",
                f"{decoded.speed:,.0f}",
                "-" if same is None else f"{same:.1%}",
            )
            table.add_row(variant.name, self._one_line(token_ids[0]), *figures)
        if not records.printed:
            report_console().print(table)

    def _decode_shown(self, engine: Engine, variant: DecodeVariant, description: str) -> Decoded:
        """Decodes after a warm-up, and shows the progress in new tokens on standard error."""
        most = variant.options.max_new_tokens
        with progress_bar(description, most * len(self.prompts), shown=rank() == 0) as advance:
            self._warm_up(engine, variant)
            return self._decode(engine, variant, TokenCounter(advance, most))

    def _warm_up(self, engine: Engine, variant: DecodeVariant) -> None:
        """Decodes a few tokens first, so that one-time costs of the first forwards do not count in the speed."""
        few = min(variant.options.max_new_tokens, _WARMING_TOKENS)
        first = replace(self, prompts=self.prompts[: self.batch_size])
        first._decode(engine, replace(variant, options=replace(variant.options, max_new_tokens=few)))

    def _decode(self, engine: Engine, variant: DecodeVariant, *observers: Observer | None) -> Decoded:
        policy = variant.policy(engine) if variant.policy else None
        sequences: list[Progress] = []
        observer = Observers(*observers, InOrder(sequences.append))
        begin = time.perf_counter()
        with value_errors_as_user_errors():
            result = decode(engine, self.prompts, variant.mode, variant.options, policy, observer, self.batch_size)
        return Decoded(result, sequences, time.perf_counter() - begin - observer.seconds)

    def _record(self, variant: DecodeVariant, ended: Progress) -> dict[str, Any]:
        return record_of(variant.name, self.texts[ended.sequence], self.source.tokenizer, ended)

    def _one_line(self, token_ids: list[int]) -> Text:
        text = printable(self.source.tokenizer.decode(token_ids, skip_special_tokens=True)).replace("\n", "\u23ce")
        return Text(text[:_START_CHARACTERS], no_wrap=True, overflow="ellipsis")


def _same(variant: DecodeVariant, token_ids: list[list[int]], reference: list[list[int]]) -> float | None:
    """Share of tokens equal to AR's; None with a temperature, where equal distributions give different texts."""
    return agreement(token_ids, reference) if variant.options.temperature == 0 else None


def _summary(variant: DecodeVariant, decoded: Decoded) -> str:
    new = sum(decoded.result.new_tokens)
    figures = f"{tokens_per_forward(decoded.result):.2f} tokens per forward, {decoded.speed:,.0f} tokens/s"
    if (share := graph_share(decoded.result)) > 0:
        figures += f", {share:.0%} of the forwards in CUDA graphs"
    return f"{variant.name}: {new} tokens in {decoded.seconds:.2f} s, {figures}"
