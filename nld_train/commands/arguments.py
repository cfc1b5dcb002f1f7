"""Arguments that several of the commands that decode have. Nothing that imports torch is imported at the top."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

from nld_train.config.schema import DecodingMode

MODES: tuple[DecodingMode, ...] = get_args(DecodingMode)
POLICIES = ("threshold", "number", "steps", "entropy", "sampler")
# Options that only diffusion reads, apart from the threshold, and what they are where nobody says.
POLICY_DEFAULTS = {"policy": "threshold", "number": 1, "steps": 8, "entropy": 0.3, "sampler": None}


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT and --tokenizer."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, a checkpoint of it, an imported checkpoint, or an export"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="take this tokenizer (default: the checkpoint's)")


def add_layout(parser: argparse.ArgumentParser) -> None:
    """--tensor and --pipeline."""
    for name, cut in (("tensor", "every layer"), ("pipeline", "the layers")):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=1,
            metavar="N",
            help=f"cut {cut} of a Megatron checkpoint over so many processes of torchrun (default: 1)",
        )


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """--prompt or --prompts."""
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="continue this text")
    prompts.add_argument(
        "--prompts", metavar="FILE", help='continue every line of a file; of .jsonl the text under "prompt"'
    )


def add_lengths(parser: argparse.ArgumentParser, block_length: bool = True) -> None:
    """--max-new-tokens, --batch-size and --block-length."""
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="most new tokens (default: 128)")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="most prompts at work at once (default: 16)"
    )
    if block_length:
        parser.add_argument(
            "--block-length",
            type=int,
            default=32,
            metavar="B",
            help="tokens per block of diffusion and linear, drafts per cycle of quadratic (default: 32)",
        )


def add_block_lengths(parser: argparse.ArgumentParser, default: tuple[int, ...]) -> None:
    """--block-lengths, several with commas."""
    parser.add_argument(
        "--block-lengths",
        type=numbers(int),
        default=default,
        metavar="B,B,..",
        help=f"tokens per block (default: {','.join(map(str, default))})",
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """--sampler."""
    parser.add_argument(
        "--sampler", metavar="DIR", help="the trained sampler (default: trained_sampler/ in the checkpoint)"
    )


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """--threshold."""
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.9,
        metavar="P",
        help="diffusion commits tokens that are at least this probable (default: 0.9)",
    )


def add_thresholds(parser: argparse.ArgumentParser) -> None:
    """--thresholds, several with commas."""
    default = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
    parser.add_argument(
        "--thresholds",
        type=numbers(float),
        default=default,
        metavar="P,P,..",
        help=f"points of the curve (default: {','.join(f'{value:g}' for value in default)})",
    )


def add_policy(parser: argparse.ArgumentParser) -> None:
    """--policy and the number that each of them reads."""
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        help="what a pass of diffusion commits: by the model's probability or by the trained sampler's (both read "
        "--threshold), a number of tokens per pass, an even share in a number of passes per block, by entropy "
        "(default: threshold)",
    )
    add_threshold(parser)
    parser.add_argument("--number", type=int, metavar="N", help="tokens per pass (default: 1)")
    parser.add_argument("--steps", type=int, metavar="N", help="passes per block (default: 8)")
    parser.add_argument("--entropy", type=float, metavar="H", help="most nats (default: 0.3)")
    add_sampler(parser)
    parser.set_defaults(**POLICY_DEFAULTS)


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """--adapter."""
    parser.add_argument(
        "--adapter",
        nargs="?",
        const=True,
        default=False,
        metavar="DIR",
        help="linear: draft with the drafter adapter in DIR (default: the checkpoint's own)",
    )


def add_outputs(parser: argparse.ArgumentParser, plot: bool = True) -> None:
    """--json and --plot."""
    parser.add_argument("--json", metavar="FILE", help="write every figure here too")
    if plot:
        parser.add_argument("--plot", metavar="FILE", help="draw the figures here, as PNG")


def numbers(kind: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """A parser of numbers with commas between them."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers with commas") from None

    return parse
