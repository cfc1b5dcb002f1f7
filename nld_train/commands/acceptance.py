"""The command `nld-acceptance`: accepted length by category of prompts, per mode and block length."""

from __future__ import annotations

import argparse
import sys

from nld_train.commands.command import Command, Imported


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import (
        add_adapter,
        add_block_lengths,
        add_checkpoint,
        add_lengths,
        add_outputs,
        add_policy,
        add_questions,
    )

    add_checkpoint(parser)
    rows = 'JSONL, a line with "category" and "turns" (or "messages", or "prompt") each, as SPEED-Bench has it'
    add_questions(parser, rows, modes=("diffusion", "linear", "quadratic"))
    add_block_lengths(parser, default=(8, 16, 32), always_read=False)
    add_lengths(parser, block_length=False)
    add_policy(parser)
    add_adapter(parser)
    add_outputs(parser, plot=False)


main = Command(
    "nld-acceptance",
    "Answers prompts of several categories in several decode modes and reports how many tokens a verification pass "
    "commits in each.",
    _add_arguments,
    Imported("nld_train.evaluation.acceptance:run"),
    Imported("nld_train.decoding.command_line.checks:check_command_line"),
)

if __name__ == "__main__":
    sys.exit(main())
