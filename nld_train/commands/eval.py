"""The command `nld-eval` (`python -m nld_train.commands.eval`): runs lm-evaluation-harness on a checkpoint."""

from __future__ import annotations

import argparse
import sys

from nld_train.commands.command import Command, Imported, utf8
from nld_train.results import add_result_options


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import MODES, add_checkpoint, add_layout

    add_checkpoint(parser)
    add_layout(parser)
    parser.add_argument("--mode", choices=MODES, required=True, help="decode mode")
    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="tasks, groups or tags of lm_eval, or a list: paper_instruct, paper_base",
    )
    _add_decoding(parser)
    _add_harness(parser)


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import add_adapter, add_block_start, add_cuda_graphs, add_policy

    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="sequences that run together (default: 16)"
    )
    parser.add_argument(
        "--block-length",
        type=int,
        metavar="B",
        help="tokens per block of diffusion, linear and the bound, drafts per cycle of quadratic (default: the "
        "checkpoint's diffusion.block_size)",
    )
    add_block_start(parser)
    add_policy(parser)
    parser.add_argument(
        "--likelihood",
        choices=("ar", "bound"),
        help="mode diffusion: log-likelihoods are those of AR, or diffusion's lower bounds (default: bound, in "
        "paper_base ar)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="mode diffusion: noise samples per block of a log-likelihood's bound (default: 32)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="most new tokens of a text (default: each task's own number)"
    )
    add_adapter(parser)
    add_cuda_graphs(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of noise and of sampled texts (default: 0)")


def _add_harness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each task")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples in each prompt, where a task allows it")
    parser.add_argument(
        "--include-path", action="append", default=[], metavar="DIR", help="a folder with tasks of your own (YAML)"
    )
    _add_chat(parser)
    parser.add_argument(
        "--unsafe-code", action="store_true", help="allow tasks that run code which the model wrote: use a sandbox"
    )
    add_result_options(parser, "all results")
    parser.add_argument("--log-samples", action="store_true", help="keep every document and answer in --output")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    from nld_train.commands.arguments import add_chat_format

    parser.add_argument(
        "--apply-chat-template",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="put prompts into the tokenizer's chat template, of several into the one of that name",
    )
    parser.add_argument("--system-instruction", type=utf8, metavar="TEXT", help="system prompt of every prompt")
    parser.add_argument(
        "--fewshot-as-multiturn",
        nargs="?",
        const=True,
        type=_truth,
        metavar="true|false",
        help="examples are turns before the question (default with a chat template), or all are one message",
    )
    add_chat_format(parser)


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


main = Command(
    "nld-eval",
    "Runs tasks of lm-evaluation-harness on the weights of a checkpoint, in any decode mode. Started by torchrun, each "
    "process, or each group of processes that shares a model, answers its shard of the requests.",
    _add_arguments,
    Imported("nld_train.evaluation.harness.command:run"),
    Imported("nld_train.evaluation.harness.checks:check_command_line"),
)

if __name__ == "__main__":
    sys.exit(main())
