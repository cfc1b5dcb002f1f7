"""The command `nld-bound`: how many tokens per forward an oracle reaches, beside what each way to decode reaches.

Only the standard library is imported here at the top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nld_train.commands.arguments import (
    add_block_lengths,
    add_checkpoint,
    add_lengths,
    add_outputs,
    add_prompts,
    add_sampler,
    add_threshold,
    run_to_status,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after one line about a mistake in what was asked for."""
    options = _parser().parse_args(arguments)

    def run() -> None:
        from nld_train.evaluation.decoding_commands import run_bound

        run_bound(options)

    return run_to_status(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nld-bound",
        description="Measures the speed of light of diffusion decoding: an oracle commits as much per pass as still "
        "ends at the block of one-token-per-pass decoding. Every other way to decode stands beside it.",
    )
    add_checkpoint(parser)
    add_prompts(parser)
    add_block_lengths(parser, default=(4, 8, 16, 32))
    add_lengths(parser, block_length=False)
    add_threshold(parser)
    add_sampler(parser)
    parser.add_argument(
        "--budget", type=int, default=5000, metavar="N", help="most forwards of the oracle per block (default: 5000)"
    )
    add_outputs(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
