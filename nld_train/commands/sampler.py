"""The command `nld-sampler`: trains the sampler that decides which predictions a denoising pass commits."""

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
    add_sampler(parser)
    parser.add_argument(
        "--held-out", type=float, default=0.2, metavar="P", help="fraction of prompts to evaluate it on (default: 0.2)"
    )
    _add_sizes(parser)
    add_thresholds(parser)
    add_outputs(parser)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_argument_group("the sampler and its training")
    sizes.add_argument("--width", type=int, default=384, metavar="N", help="of its hidden states (default: 384)")
    sizes.add_argument("--layers", type=int, default=4, metavar="N", help="(default: 4)")
    sizes.add_argument("--heads", type=int, default=6, metavar="N", help="of each layer's attention (default: 6)")
    sizes.add_argument(
        "--components", type=int, default=64, metavar="N", help="principal components of embeddings (default: 64)"
    )
    sizes.add_argument("--steps", type=int, default=1000, metavar="N", help="of its optimizer (default: 1000)")
    sizes.add_argument(
        "--sampler-batch-size", type=int, default=128, metavar="N", help="block states per step (default: 128)"
    )
    sizes.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="at its peak (default: 0.001)")
    sizes.add_argument("--seed", type=int, default=0, metavar="S", help="of its weights and their order (default: 0)")


main = Command(
    "nld-sampler",
    "Decodes prompts one token per pass, trains a small Transformer to predict which of a pass's predictions are those "
    "that are finally committed, saves it beside the model, and evaluates it on held-out prompts.",
    _add_arguments,
    Imported("nld_train.evaluation.sampler_command:run"),
    Imported("nld_train.decoding.command_line.checks:check_command_line"),
)

if __name__ == "__main__":
    sys.exit(main())
