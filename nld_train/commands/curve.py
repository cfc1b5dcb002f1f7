"""The command `nld-curve`: tokens per forward and agreement with AR against the threshold of diffusion decoding."""

from __future__ import annotations

import argparse
import sys

from nld_train.commands.command import Command, Imported


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import (
        add_checkpoint,
        add_lengths,
        add_outputs,
        add_prompts,
        add_sampler,
        add_thresholds,
    )

    add_checkpoint(parser)
    add_prompts(parser)
    add_lengths(parser)
    add_thresholds(parser)
    add_sampler(parser)
    add_outputs(parser)


main = Command(
    "nld-curve",
    "Decodes prompts by diffusion at many thresholds of the model's confidence and, if there is one, of the trained "
    "sampler: tokens per forward, and the fraction of tokens equal to those of AR and of one token per pass.",
    _add_arguments,
    Imported("nld_train.evaluation.threshold_curve:run"),
    Imported("nld_train.decoding.command_line.checks:check_command_line"),
)

if __name__ == "__main__":
    sys.exit(main())
