"""The command `nld-decode` (`python -m nld_train.commands.decode`): continues prompts with a checkpoint's weights."""

from __future__ import annotations

import argparse
import sys

from nld_train.commands.command import Command, Imported, utf8
from nld_train.results import add_result_options


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import (
        MODES,
        add_adapter,
        add_block_start,
        add_chat_format,
        add_checkpoint,
        add_cuda_graphs,
        add_layout,
        add_lengths,
        add_policy,
        add_prompts,
    )

    add_checkpoint(parser)
    add_layout(parser)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--mode", choices=MODES, help="decode mode (default, with --chat alone: linear)")
    modes.add_argument("--compare", action="store_true", help="decode in every mode and print one table")
    add_prompts(parser, required=False)
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture of the prompt, where its text has [IMG], or before it; in a chat, of the first message; may be "
        "given several times, for a vision-language model",
    )
    _add_chat(parser)
    add_chat_format(parser)
    add_lengths(parser, chat=True)
    add_block_start(parser)
    add_policy(parser)
    _add_sampling(parser)
    _add_stop(parser)
    add_adapter(parser)
    add_cuda_graphs(parser)
    add_result_options(parser, "one object per prompt")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat",
        action="store_true",
        help="put prompts into the tokenizer's chat template; without --prompt and --prompts, talk with the model: "
        "each line of standard input is a turn",
    )
    parser.add_argument("--system", type=utf8, metavar="TEXT", help="system prompt of a chat (default: none)")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import add_ar_weight

    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of sampling; 0: greedy (default: 0)"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="sample among the K most likely tokens (default: among all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample among the most likely tokens whose probabilities add up to P (default: among all)",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="prompt i draws with seed S + i (default: 0)")
    add_ar_weight(parser)


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stop",
        type=utf8,
        action="append",
        default=[],
        metavar="TEXT",
        help="end a text with the token that completes this one; may be given several times",
    )


main = Command(
    "nld-decode",
    "Continues prompts with the weights of a checkpoint, or talks with an instruct model, in any decode mode. Started "
    "by torchrun, all processes share one model.",
    _add_arguments,
    Imported("nld_train.decoding.command_line.command:run"),
    Imported("nld_train.decoding.command_line.checks:check_decode"),
)

if __name__ == "__main__":
    sys.exit(main())
