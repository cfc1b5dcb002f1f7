"""The command `nld-exact`: exact answers and tokens per forward of each decode mode, by kind of question."""

from __future__ import annotations

import argparse
import sys

from nld_train.commands.command import Command, Imported


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import (
        MODES,
        add_adapter,
        add_ar_weight,
        add_block_start,
        add_chat_format,
        add_checkpoint,
        add_lengths,
        add_outputs,
        add_policy,
        add_questions,
    )

    add_checkpoint(parser)
    rows = 'JSONL, on each line "messages", the last of which is the right answer, and "kind", as `nld-data tasks` '
    add_questions(parser, rows + "writes it", modes=MODES)
    add_lengths(parser)
    add_block_start(parser)
    add_policy(parser)
    add_ar_weight(parser)
    add_adapter(parser)
    add_chat_format(parser)
    add_outputs(parser, plot=False)


main = Command(
    "nld-exact",
    "Asks questions that have exactly one right answer, in several decode modes, and reports by kind of question how "
    "many are answered exactly, and the tokens per forward.",
    _add_arguments,
    Imported("nld_train.evaluation.exact_match:run"),
    Imported("nld_train.decoding.command_line.checks:check_command_line"),
)

if __name__ == "__main__":
    sys.exit(main())
