"""Arguments of the commands that decode. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import get_args

from nld_train.commands.command import utf8
from nld_train.config.schema import CudaGraphs, DecodingMode
from nld_train.decoding.algorithms.options import BlockStart
from nld_train.decoding.mode_options import CHAT_MAX_NEW_TOKENS, MAX_NEW_TOKENS
from nld_train.decoding.policies.policy_declaration import Argument
from nld_train.decoding.policies.registry import DEFAULT, POLICIES, policy_arguments
from nld_train.decoding.policies.threshold import THRESHOLD
from nld_train.decoding.policies.trained_sampler import SAMPLER
from nld_train.results import add_result_options

MODES: tuple[DecodingMode, ...] = get_args(DecodingMode)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT and --tokenizer."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, a checkpoint of it, an imported checkpoint, or an export"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="the tokenizer of the training (default: the checkpoint's)")


def add_layout(parser: argparse.ArgumentParser) -> None:
    """--tensor and --pipeline."""
    for name, cut in (("tensor", "every layer"), ("pipeline", "the layers")):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=1,
            metavar="N",
            help=f"split {cut} of a Megatron checkpoint over N processes of torchrun (default: 1)",
        )


def add_prompts(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--prompt or --prompts."""
    prompts = parser.add_mutually_exclusive_group(required=required)
    prompts.add_argument("--prompt", type=utf8, metavar="TEXT", help="continue this text")
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        help='continue every line of a file; of JSONL the text under "prompt", or answer the conversation under '
        '"messages"',
    )


def add_questions(parser: argparse.ArgumentParser, rows: str, modes: Sequence[DecodingMode]) -> None:
    """--prompts and --modes of a command that asks each line of a file in several modes.

    Args:
        parser: of the command.
        rows: what a line holds.
        modes: in which they are asked by default.
    """
    parser.add_argument("--prompts", required=True, metavar="FILE", help=rows)
    others = [mode for mode in MODES if mode not in modes]
    default = f"all but {', '.join(others)}" if others else "all"
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(modes), help=f"(default: {default})")


def add_chat_format(parser: argparse.ArgumentParser) -> None:
    """--chat-template and --chat-template-args."""
    parser.add_argument(
        "--chat-template", metavar="FILE", help="a chat template (Jinja) to use instead of the tokenizer's"
    )
    parser.add_argument(
        "--chat-template-args",
        type=utf8,
        metavar="JSON",
        help="arguments of the chat template, such as '{\"enable_thinking\": false}'",
    )


def add_lengths(parser: argparse.ArgumentParser, block_length: bool = True, chat: bool = False) -> None:
    """--max-new-tokens, --batch-size and --block-length.

    Args:
        parser: of the command.
        block_length: whether it has --block-length.
        chat: for a command with --chat, in which the number of new tokens has another default.
    """
    most, also = MAX_NEW_TOKENS, f"; in a chat {CHAT_MAX_NEW_TOKENS}, or half of a smaller context" if chat else ""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=None if chat else most,
        metavar="N",
        help=f"most new tokens (default: {most}{also})",
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="most sequences decoded together (default: 16)"
    )
    if block_length:
        parser.add_argument(
            "--block-length",
            type=int,
            metavar="B",
            help="tokens per block of diffusion and linear, drafts per cycle of quadratic (default: the checkpoint's "
            "diffusion.block_size)",
        )


def add_ar_weight(parser: argparse.ArgumentParser) -> None:
    """--ar-weight."""
    parser.add_argument(
        "--ar-weight",
        type=float,
        metavar="W",
        help="quadratic: weight of the AR prediction in the ensemble that accepts drafts and gives the bonus token; "
        "below 1 the text is no longer AR's (default: 1)",
    )


def add_block_start(parser: argparse.ArgumentParser) -> None:
    """--block-start."""
    parser.add_argument(
        "--block-start",
        choices=get_args(BlockStart),
        help="diffusion: a block starts with the AR prediction after the text (seed), or with masks alone (default: "
        "seed, and masks where the model was trained without an AR loss)",
    )


def add_cuda_graphs(parser: argparse.ArgumentParser) -> None:
    """--cuda-graphs."""
    parser.add_argument(
        "--cuda-graphs",
        choices=get_args(CudaGraphs),
        default="auto",
        help="run what is computed between two readings of the host as one CUDA graph: auto where that is possible, on "
        "or not at all, off never (default: auto)",
    )


def add_block_lengths(parser: argparse.ArgumentParser, default: tuple[int, ...], always_read: bool = True) -> None:
    """--block-lengths, several with commas.

    Args:
        parser: of the command.
        default: block lengths if none are given.
        always_read: False for a command in some of whose modes they are refused: without them `block_lengths` is then
            None, and `default_block_lengths` has the default.
    """
    parser.set_defaults(default_block_lengths=default)
    parser.add_argument(
        "--block-lengths",
        type=numbers(int),
        default=default if always_read else None,
        metavar="B,B,..",
        help=f"tokens per block (default: {','.join(map(str, default))})",
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """--sampler."""
    _add_argument(parser, SAMPLER)


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """--threshold, of a command that always reads it."""
    _add_argument(parser, THRESHOLD, THRESHOLD.default)


def _add_argument(parser: argparse.ArgumentParser, argument: Argument, value: object = None) -> None:
    """An option whose value is `value` if it is not given; None, so that a mode that does not read it can refuse it."""
    default = "" if argument.default is None else f" (default: {argument.default})"
    parser.add_argument(
        argument.option, type=argument.type, default=value, metavar=argument.metavar, help=argument.help + default
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
    """--policy and the arguments of all commit policies."""
    summaries = "; ".join(f"{name}: {declaration.summary}" for name, declaration in POLICIES.items())
    parser.add_argument(
        "--policy",
        choices=tuple(POLICIES),
        help=f"what a denoising pass of diffusion commits. {summaries} (default: {DEFAULT})",
    )
    for argument in policy_arguments().values():
        _add_argument(parser, argument)


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
    """--json, --output and --plot."""
    add_result_options(parser)
    if plot:
        parser.add_argument("--plot", metavar="FILE", help="plot the figures to this file, as PNG")


def numbers(kind: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """A parser of numbers with commas between them."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers with commas") from None

    return parse
