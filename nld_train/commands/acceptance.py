"""The command `nld-acceptance`: acceptance length by category of prompts, per mode and block length.

Only the standard library is imported here at the top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nld_train.commands.arguments import (
    MODES,
    add_adapter,
    add_block_lengths,
    add_checkpoint,
    add_lengths,
    add_outputs,
    add_policy,
    run_to_status,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after one line about a mistake in what was asked for."""
    options = _parser().parse_args(arguments)

    def run() -> None:
        from nld_train.evaluation import acceptance

        acceptance.run(options)

    return run_to_status(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nld-acceptance",
        description="Answers prompts of several categories in several ways and reports how many tokens a verify pass "
        "brought in each.",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help='JSONL, a line with "category" and "turns" (or "messages", or "prompt") each, as SPEED-Bench has it',
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=["diffusion", "linear", "quadratic"], help="(default: all but ar)"
    )
    add_block_lengths(parser, default=(8, 16, 32))
    add_lengths(parser, block_length=False)
    add_policy(parser)
    add_adapter(parser)
    add_outputs(parser, plot=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
