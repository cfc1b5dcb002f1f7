"""`nld-data prompts`: takes prompts for decoding out of a token set."""

from __future__ import annotations

import argparse

from nld_train.commands.command import Command
from nld_train.printable import say
from nld_train.results import check_result_files


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="PREFIX", help="path of the set without .bin and .idx")
    parser.add_argument("--output", "--out", required=True, metavar="FILE", help="JSONL file to write")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="prompts, of N documents (default: 16)")
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="length of each prompt (default: 128); of conversations, which stay whole, the most (default: any)",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="to make text (default: the one that the manifest names)")


def _prompts(options: argparse.Namespace) -> None:
    from nld_train.data.held_out_prompts import PromptRequest, write_prompts

    request = PromptRequest(options.prefix, options.output, options.count, options.tokens, options.tokenizer)
    say(f"{options.output}: {write_prompts(request)} prompts")


PROMPTS = Command(
    "prompts",
    "Takes prompts out of a held-out set, conversations up to their last answers, as JSONL for nld-decode --prompts.",
    _add_prompts,
    _prompts,
    check_result_files,
    summary="take prompts for decoding out of a set",
)
