"""Decodes prompts with and without a run's drafter adapter: `python launch/show_drafter.py RUN_DIRECTORY`.

The prompts are those in `prompts.jsonl` of the run; the block length is the one that the adapter was trained with.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.table import Table

NEW_TOKENS = 192


def main() -> None:
    """Show tokens per forward of linear self-speculation, without and with the adapter."""
    from nld_train.library_warnings import ignore_known_warnings

    ignore_known_warnings()
    from nld_train.console import plain_console
    from nld_train.data.text_ids import text_ids
    from nld_train.decoding import DecodeOptions
    from nld_train.decoding.algorithms.decode import decode
    from nld_train.decoding.algorithms.statistics import accepted_length, tokens_per_forward
    from nld_train.decoding.load import find_source

    directory = Path(sys.argv[1])
    source = find_source(directory)
    lines = (directory / "prompts.jsonl").read_text().splitlines()
    prompts = [text_ids(source.tokenizer, json.loads(line)["prompt"]) for line in lines]
    length = block_length(source.directory)
    table = Table("drafts of linear self-speculation", "tokens/forward", "tokens/cycle", "tokens/s", "equal to AR")
    with source.open() as engine:
        options = DecodeOptions(max_new_tokens=NEW_TOKENS, block_length=length, stop_tokens=source.stop_tokens)
        ar = decode(engine, prompts, "ar", options)
        found = []
        for name, adapter in (("without adapter", False), ("with adapter", True)):
            begin = time.perf_counter()
            result = decode(engine, prompts, "linear", replace(options, adapter=adapter))
            speed = sum(result.new_tokens) / (time.perf_counter() - begin)
            found.append(tokens_per_forward(result))
            equal = "yes" if result.token_ids == ar.token_ids else "no"
            table.add_row(name, f"{found[-1]:.3f}", f"{accepted_length(result):.2f}", f"{speed:.0f}", equal)
    console = plain_console(width=120)
    console.print(table)
    console.print(
        f"{len(prompts)} held-out prompts, blocks of {length}: {found[1] / found[0] - 1:+.0%} tokens per forward"
    )


def block_length(checkpoint: Path) -> int:
    """The block size of the stage that wrote a checkpoint (`adapter.block_size`)."""
    from nld_train.config.compose import compose_config
    from nld_train.training.checkpoint.contents import read_progress, saved_config

    adapter = saved_config(checkpoint, compose_config()).stages[read_progress(checkpoint).stage].adapter
    assert adapter is not None, "the newest checkpoint is of a drafter stage"
    return adapter.block_size


if __name__ == "__main__":
    main()
