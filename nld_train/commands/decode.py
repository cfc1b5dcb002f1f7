"""The command `nld-decode`, also `python -m nld_train.commands.decode`: continues prompts with a checkpoint's weights.

Only the standard library is imported here at the top; even `nld_train.decoding` imports torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nld_train.commands.arguments import (
    MODES,
    add_adapter,
    add_checkpoint,
    add_layout,
    add_lengths,
    add_policy,
    add_prompts,
    run_to_status,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after one line about a mistake in what was asked for."""
    options = _parser().parse_args(arguments)

    def run() -> None:
        from nld_train.decoding.command_line import command

        command.run(options)

    return run_to_status(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nld-decode",
        description="Continues prompts with the weights of a checkpoint, in any of the ways to read them. Started by "
        "torchrun, all processes share one model.",
    )
    add_checkpoint(parser)
    add_layout(parser)
    parser.add_argument("--mode", choices=MODES, help="how to decode")
    parser.add_argument("--compare", action="store_true", help="decode in every mode and print one table")
    add_prompts(parser)
    add_lengths(parser)
    add_policy(parser)
    _add_sampling(parser)
    _add_stop(parser)
    add_adapter(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per prompt and nothing else")
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of sampling; 0 is greedy (default: 0)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among so many tokens; 0 among all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest tokens of this probability"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="prompt i draws with seed S + i (default: 0)")
    parser.add_argument(
        "--ar-weight",
        type=float,
        default=1.0,
        metavar="W",
        help="quadratic: share of the AR head in the token after the drafts; below 1 it is no longer AR's text "
        "(default: 1)",
    )


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end a text with the token that completes this one; may be given several times",
    )


if __name__ == "__main__":
    sys.exit(main())
