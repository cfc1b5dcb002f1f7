"""What `nld-decode` does: read prompts, open a checkpoint, decode batch after batch, show what came of it."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from nld_train.decoding.decode import decode
from nld_train.decoding.engine import Engine
from nld_train.decoding.layout import first_process_speaks
from nld_train.decoding.options import check_request
from nld_train.decoding.outputs import DecodeResult
from nld_train.decoding.request import Request, in_one_line, policy_of, read_request
from nld_train.decoding.statistics import agreement, merged, tokens_per_forward
from nld_train.decoding.terminal import Watcher, numeric, print_row, printable, report_console
from nld_train.decoding.ways import Way, refuse_unread, ways_of

# More of a text than any terminal has room for.
_START_CHARACTERS = 200
_WARMING_TOKENS = 8


@dataclass(frozen=True)
class Decoded:
    """A batch and how long it took.

    Attributes:
        first: number of its first prompt.
        result: its tokens.
        seconds: wall time, its prefill included, without what it took to show it.
    """

    first: int
    result: DecodeResult
    seconds: float


def run(arguments: Namespace) -> None:
    """Runs a command line that `nld_train.decode` has parsed.

    Raises:
        UserError: a request that cannot be answered, found before any weight is read.
    """
    refuse_unread(arguments)
    request = read_request(arguments)
    job = Job(request.source, request.texts, request.prompts, request.batch_size)
    with in_one_line():
        ways = ways_of(arguments, job.source, policy_of(arguments, job.source))
        for way in ways:
            check_request(job.source.description, job.prompts, way.mode, way.options)
    show = job.compare if arguments.compare else job.show
    with job.source.open() as engine, first_process_speaks():
        show(engine, ways, arguments.json)


@dataclass(frozen=True)
class Job(Request):
    """A request and how its answer is shown."""

    def show(self, engine: Engine, ways: list[Way], as_json: bool) -> None:
        """Decodes in one way; each batch is shown while it grows, or as JSON when it is done."""
        console = Console(highlight=False, soft_wrap=True)
        live = console.is_terminal and not as_json
        for decoded in self._decoded(engine, ways[0], console if live else None):
            for row in range(len(decoded.result.token_ids)):
                if as_json:
                    print(json.dumps(self._record(ways[0], decoded, row), ensure_ascii=False), flush=True)
                else:
                    text = self.texts[decoded.first + row]
                    print_row(console, self.source.tokenizer, ways[0].mode, text, decoded.result, row)
            if not as_json:
                console.print(_summary(ways[0], [decoded]), style="dim")

    def compare(self, engine: Engine, ways: list[Way], as_json: bool) -> None:
        """Decodes in every way, AR first, and shows them side by side."""
        table = Table(Column("mode", no_wrap=True), "text", *map(numeric, ("tokens/forward", "tokens/s", "same as AR")))
        reference: list[list[int]] = []
        for way in ways:
            self._warm_up(engine, way)
            batches = list(self._decoded(engine, way))
            token_ids = [ids for decoded in batches for ids in decoded.result.token_ids]
            reference = reference or token_ids
            if as_json:
                self._print_with_agreement(way, batches, reference)
            same = _same(way, token_ids, reference)
            figures = (
                f"{_per_forward(batches):.2f}",
                f"{_speed(batches):,.0f}",
                "-" if same is None else f"{same:.1%}",
            )
            table.add_row(way.name, self._one_line(token_ids[0]), *figures)
        if not as_json:
            report_console().print(table)

    def _warm_up(self, engine: Engine, way: Way) -> None:
        """A few tokens that nobody counts: what a mode's first forwards cost once is not its speed."""
        few = min(way.options.max_new_tokens, _WARMING_TOKENS)
        brief = replace(way, options=replace(way.options, max_new_tokens=few))
        next(self._decoded(engine, brief))

    def _decoded(self, engine: Engine, way: Way, console: Console | None = None) -> Iterator[Decoded]:
        """Batch after batch, watched on a terminal where one is given."""
        policy = way.policy(engine) if way.policy else None
        for first in range(0, len(self.prompts), self.batch_size):
            batch = slice(first, first + self.batch_size)
            options = replace(way.options, seeds=way.options.seed_of(first))
            watcher = Watcher(console, self.source.tokenizer, way.mode, self.texts[batch]) if console else None
            with watcher or nullcontext():
                begin = time.perf_counter()
                result = decode(engine, self.prompts[batch], way.mode, options, policy, watcher)
                seconds = time.perf_counter() - begin
            yield Decoded(first, result, seconds - (watcher.seconds if watcher else 0.0))

    def _print_with_agreement(self, way: Way, batches: list[Decoded], reference: list[list[int]]) -> None:
        for decoded in batches:
            for row, ids in enumerate(decoded.result.token_ids):
                record = self._record(way, decoded, row)
                record["agreement"] = _same(way, [ids], [reference[decoded.first + row]])
                print(json.dumps(record, ensure_ascii=False), flush=True)

    def _record(self, way: Way, decoded: Decoded, row: int) -> dict[str, Any]:
        """One prompt as JSON; `seconds` are those of its batch, all other numbers its own."""
        result = decoded.result
        return {
            "mode": way.name,
            "prompt": self.texts[decoded.first + row],
            "text": self.source.tokenizer.decode(result.token_ids[row], skip_special_tokens=True),
            "token_ids": result.token_ids[row],
            "new_tokens": result.new_tokens[row],
            "forwards": result.row_forwards[row],
            "prefill": result.prefill,
            "tokens_per_forward": result.tokens_per_forward[row],
            "seconds": decoded.seconds,
            "finish": result.finish[row],
        }

    def _one_line(self, token_ids: list[int]) -> Text:
        text = printable(self.source.tokenizer.decode(token_ids, skip_special_tokens=True)).replace("\n", "\u23ce")
        return Text(text[:_START_CHARACTERS], no_wrap=True, overflow="ellipsis")


def _same(way: Way, token_ids: list[list[int]], reference: list[list[int]]) -> float | None:
    """Share of tokens equal to AR's; None of sampled texts, which may differ however like AR they are drawn."""
    return agreement(token_ids, reference) if way.options.temperature == 0 else None


def _speed(batches: list[Decoded]) -> float:
    """New tokens per second of all batches."""
    return sum(sum(decoded.result.new_tokens) for decoded in batches) / sum(decoded.seconds for decoded in batches)


def _per_forward(batches: list[Decoded]) -> float:
    return tokens_per_forward(merged([decoded.result for decoded in batches]))


def _summary(way: Way, batches: list[Decoded]) -> str:
    new = sum(sum(decoded.result.new_tokens) for decoded in batches)
    seconds = sum(decoded.seconds for decoded in batches)
    figures = f"{_per_forward(batches):.2f} tokens per forward, {_speed(batches):,.0f} tokens/s"
    return f"{way.name}: {new} tokens in {seconds:.2f} s, {figures}"
