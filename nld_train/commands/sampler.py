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
        numbers,
    )

    add_checkpoint(parser)
    add_prompts(parser)
    add_lengths(parser)
    add_sampler(parser)
    parser.add_argument(
        "--trained-block-lengths",
        type=numbers(int),
        default=(8, 32),
        metavar="B,B,..",
        help="tokens per block of the trajectories to train on (default: 8,32); --block-length is that of the curves",
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="P",
        help="fraction of prompts on which the training is stopped, and of others to evaluate on (default: 0.1)",
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
        "--components",
        type=int,
        default=140,
        metavar="N",
        help="principal components of the embeddings of the three likeliest tokens; with four more they are its inputs "
        "(default: 140)",
    )
    sizes.add_argument("--steps", type=int, default=2000, metavar="N", help="most of its optimizer (default: 2000)")
    sizes.add_argument(
        "--evaluate-every", type=int, default=100, metavar="N", help="steps between evaluations (default: 100)"
    )
    sizes.add_argument(
        "--patience",
        type=int,
        default=3,
        metavar="N",
        help="evaluations without a higher held-out AUC after which the training stops (default: 3)",
    )
    sizes.add_argument(
        "--sampler-batch-size", type=int, default=128, metavar="N", help="block states per step (default: 128)"
    )
    sizes.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="at its peak (default: 0.001)")
    sizes.add_argument("--seed", type=int, default=0, metavar="S", help="of its weights and their order (default: 0)")


main = Command(
    "nld-sampler",
    "Decodes prompts one token per pass, and towards the true text where it is known, trains a small Transformer to "
    "predict which of a pass's predictions are those that are finally committed, saves it beside the model, and "
    "evaluates it on held-out prompts.",
    _add_arguments,
    Imported("nld_train.evaluation.sampler_command:run"),
    Imported("nld_train.decoding.command_line.checks:check_command_line"),
)

if __name__ == "__main__":
    sys.exit(main())
