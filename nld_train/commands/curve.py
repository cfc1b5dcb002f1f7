"""The command `nld-curve`: tokens per forward and agreement with AR against the threshold of diffusion decoding.

Only the standard library is imported here at the top.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nld_train.commands.arguments import (
    add_checkpoint,
    add_lengths,
    add_outputs,
    add_prompts,
    add_sampler,
    add_thresholds,
    run_to_status,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after one line about a mistake in what was asked for."""
    options = _parser().parse_args(arguments)

    def run() -> None:
        from nld_train.evaluation.decoding_commands import run_curve

        run_curve(options)

    return run_to_status(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nld-curve",
        description="Decodes prompts by diffusion at many thresholds, of the model's confidence and, where there is "
        "one, of the trained sampler: tokens per forward, and how many tokens are those of AR and of one token per "
        "pass.",
    )
    add_checkpoint(parser)
    add_prompts(parser)
    add_lengths(parser)
    add_thresholds(parser)
    add_sampler(parser)
    add_outputs(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
