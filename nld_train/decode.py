"""The command `nld-decode`, also `python -m nld_train.decode`: continues prompts with a checkpoint's weights.

Only the standard library is imported here at the top; even `nld_train.decoding` imports torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nld_train.errors import UserError

USER_ERROR_STATUS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after one line about a mistake in what was asked for."""
    options = _parser().parse_args(arguments)
    try:
        from nld_train.decoding.command import run

        run(options)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nld-decode",
        description="Continues prompts with the weights of a checkpoint, in any of the ways to read them.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, a checkpoint of it, an imported checkpoint, or an export"
    )
    parser.add_argument("--mode", choices=("ar", "diffusion", "linear", "quadratic"), help="how to decode")
    parser.add_argument("--compare", action="store_true", help="decode in every mode and print one table")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="continue this text")
    prompts.add_argument(
        "--prompts", metavar="FILE", help='continue every line of a file; of .jsonl the text under "prompt"'
    )
    _add_settings(parser)
    parser.add_argument("--tokenizer", metavar="DIR", help="take this tokenizer (default: the checkpoint's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per prompt and nothing else")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="most new tokens (default: 128)")
    parser.add_argument(
        "--block-length",
        type=int,
        default=32,
        metavar="B",
        help="tokens per block of diffusion and linear, drafts per cycle of quadratic (default: 32)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.9,
        metavar="P",
        help="diffusion commits tokens that are at least this probable (default: 0.9)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of sampling; 0 is greedy (default: 0)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among so many tokens; 0 among all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest tokens of this probability"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="prompt i draws with seed S + i (default: 0)")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="prompts that are decoded together (default: 16)"
    )
    parser.add_argument("--adapter", action="store_true", help="linear: draft with the checkpoint's drafter adapter")


if __name__ == "__main__":
    sys.exit(main())
