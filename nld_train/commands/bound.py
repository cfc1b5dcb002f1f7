"""The command `nld-bound`: tokens per forward of the oracle (arXiv 2607.05722) beside those of every decode mode."""

from __future__ import annotations

import argparse
import sys

from nld_train.commands.command import Command, Imported


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import (
        add_block_lengths,
        add_checkpoint,
        add_lengths,
        add_outputs,
        add_prompts,
        add_sampler,
        add_threshold,
    )

    add_checkpoint(parser)
    add_prompts(parser)
    add_block_lengths(parser, default=(4, 8, 16, 32))
    add_lengths(parser, block_length=False)
    add_threshold(parser)
    add_sampler(parser)
    parser.add_argument(
        "--budget", type=int, default=5000, metavar="N", help="most simulated forwards per block (default: 5000)"
    )
    parser.add_argument(
        "--block-start",
        choices=("masks", "seed"),
        default="masks",
        help="the bound's blocks start with masks alone, or with the AR prediction after the text, as in decoding "
        "(default: masks)",
    )
    parser.add_argument(
        "--safety",
        choices=("greedy", "one-per-pass"),
        default="greedy",
        help="the oracle commits positions after which greedy acceptance, or one token per pass, still reaches the "
        "target (default: greedy)",
    )
    add_outputs(parser)


main = Command(
    "nld-bound",
    "Measures the speed of light of diffusion decoding: in each pass an oracle commits as many tokens as still lead to "
    "the block of one-token-per-pass decoding. Reports it beside greedy acceptance, one token per pass and every "
    "decode mode.",
    _add_arguments,
    Imported("nld_train.evaluation.speed_bound:run"),
    Imported("nld_train.decoding.command_line.checks:check_command_line"),
)

if __name__ == "__main__":
    sys.exit(main())
